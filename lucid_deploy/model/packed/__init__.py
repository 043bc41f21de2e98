"""Checkpoints quantized by other tools: read their settings, layouts and weights."""
