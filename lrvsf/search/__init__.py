"""A catalog becomes an index, and a photo with a word finds the thing in it."""
