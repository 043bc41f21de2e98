"""PyTorch modules, one for each kind of layer."""
