"""Rows, streams and images: everything between a file and a batch."""
