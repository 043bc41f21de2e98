"""Attention in PyTorch: the modules that the kinds of layers make, a file each."""
