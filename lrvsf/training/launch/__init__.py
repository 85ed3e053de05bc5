"""Before the model is loaded: whether the processes of a launch fit together, and how quickly they reach each other."""
