"""Pictures from wherever they lie: listed first, with ids and metadata, then read in that order."""
