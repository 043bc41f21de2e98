"""The products of a mixture of experts: each row times the matrix of its expert."""
