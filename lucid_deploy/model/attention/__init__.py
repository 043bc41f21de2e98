"""The PyTorch modules of the kinds of layers."""
