"""Multiply each row by the matrix of its expert, in a mixture of experts."""
