"""Models of families that this package does not implement: model classes of transformers, with our attention."""
