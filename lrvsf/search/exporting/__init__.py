"""A catalog in the bulk form of other people's vector databases."""
