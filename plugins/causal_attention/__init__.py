"""Causal softmax attention of new tokens over all tokens: LUCID's if the values are preconditioned, else standard."""
