"""A catalog as a folder that runs on its own, as a Hugging Face Space."""
