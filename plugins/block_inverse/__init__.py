"""Inverses of unit lower triangular blocks by merging smaller ones: stable for correlated keys."""
