"""Invert unit lower triangular blocks by merging inverses of smaller ones, which stays accurate for correlated keys."""
