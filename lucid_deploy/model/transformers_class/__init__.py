"""Models of other families: model classes of transformers, with this package's attention."""
