"""Attention of one or a few new tokens over the cache, and their preconditioned values, in one pass over the cache."""
