"""How well and how quickly a catalog answers, measured with the queries of a test set."""
