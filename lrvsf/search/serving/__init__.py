"""A catalog as a web service: questions of many clients at once, answered in batches."""
