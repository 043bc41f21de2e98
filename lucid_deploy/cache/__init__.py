"""The tensors of a cache and their storage formats, independent of models and sessions."""
