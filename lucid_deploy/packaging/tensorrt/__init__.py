"""Write a folder for NVIDIA's tools: graphs for TensorRT, the plugin library, profiles, recorded inputs, scripts."""

from lucid_deploy.packaging.tensorrt.package import TensorRtOptions, package_tensorrt

__all__ = ["TensorRtOptions", "package_tensorrt"]
