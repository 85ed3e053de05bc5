"""Rows of a catalog in fewer bytes, and what is found by them."""
