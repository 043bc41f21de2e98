"""TensorRT: the plugin library with our operators, its build, and its registration."""
