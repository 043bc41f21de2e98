"""What a cache is made of, and how its tensors are stored. Knows no model and no session."""
