"""A CondViT as ONNX graphs, and what runs them without torch."""
