"""Attention of one or a few new tokens over the cache, and their own preconditioned values, in one pass."""
