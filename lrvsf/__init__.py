"""The library around the CondViT model: data, training, evaluation, hub and search. The model files never import it."""
