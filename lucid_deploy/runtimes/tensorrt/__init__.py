"""TensorRT engines of an artifact: graph passes, profiles, building, and running what was built."""
