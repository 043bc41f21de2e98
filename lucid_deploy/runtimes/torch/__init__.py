"""The PyTorch model behind the session interface."""
