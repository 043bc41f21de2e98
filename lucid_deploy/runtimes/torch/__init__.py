"""The runtime ``torch``: sessions that run the PyTorch model."""
