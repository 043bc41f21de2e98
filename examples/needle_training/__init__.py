"""What is special about training on needles in a haystack; the training itself is in train_needles.py."""
