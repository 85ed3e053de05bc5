"""What crosses the border between this project and other people's files."""
