"""Products of a few rows by a weight that is read as it lies in memory, in the library of CPU kernels alone."""
