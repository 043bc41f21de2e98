"""Run the PyTorch model on an artifact's weights."""
