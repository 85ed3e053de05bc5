"""From the published metadata to shards and test sets: lists, downloads, what became of them."""
