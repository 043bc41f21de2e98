"""TensorRT as a host: the plugin library of our operators, building it, and bringing it into the registry."""
