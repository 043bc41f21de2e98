"""Write artifacts in the layouts that NVIDIA's Triton server and TensorRT's tools read."""
