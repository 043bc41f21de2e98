"""Causal softmax attention of new tokens over a cache: LUCID's when the values are Y, standard when they are V."""
