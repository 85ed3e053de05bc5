"""Bytes to unit rows: encoder, baselines, pipeline, store, and the top of a list of scores."""
