"""What a cache is made of, and how its tensors are stored; nothing here knows a model or a session."""
