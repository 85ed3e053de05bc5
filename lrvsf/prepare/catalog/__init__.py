"""From one's own table of pictures to shards, test sets and a recipe."""
