"""Products of rows with the matrices of their experts, of a mixture of experts."""
