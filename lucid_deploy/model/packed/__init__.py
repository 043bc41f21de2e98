"""Checkpoints whose weights other tools have quantized: their settings, their layouts, and how weights are read."""
