"""Build TensorRT engines of an artifact, and run them."""
