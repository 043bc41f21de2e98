"""Running an artifact's inlined graphs in OpenVINO."""

from lucid_deploy.runtimes.runtime import Capabilities

CAPABILITIES = Capabilities(
    dtypes=("float32", "float16"),  # tensors go through numpy, which has no bfloat16
    caches=("growing", "static"),
    graphs=("inline",),  # its ONNX frontend does not support functions
    cache_dtypes=("float16", "int8"),
    cache_sorts=("rows", "ring"),
    packages=("openvino",),
    install="lucid-deploy[openvino]",
)
