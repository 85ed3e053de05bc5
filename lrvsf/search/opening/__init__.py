"""Catalogs are opened, from their own folders or from Lance tables."""
