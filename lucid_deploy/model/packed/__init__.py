"""Checkpoints whose weights other tools have quantized: one file for each layout, and what all have in common."""
