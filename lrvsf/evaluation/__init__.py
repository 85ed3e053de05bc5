"""Ranks, recalls and protocols: how well a model finds the product that a query means."""
