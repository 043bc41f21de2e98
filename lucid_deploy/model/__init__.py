"""Configuration, checkpoint loading, and the PyTorch reference model."""
