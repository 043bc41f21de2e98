"""Multiply a few rows by a weight without a packed copy of it; only the library of CPU kernels implements this."""
