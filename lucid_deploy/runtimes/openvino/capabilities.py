"""What the OpenVINO runtime can do."""

from __future__ import annotations

from lucid_deploy.runtimes.runtime import Capabilities

CAPABILITIES = Capabilities(
    dtypes=("float32", "float16"),  # tensors go through numpy, which has no bfloat16
    caches=("growing", "static"),
    graphs=("inline",),  # its reader of ONNX files knows no functions
    cache_dtypes=("float16", "int8"),
    cache_sorts=("rows", "ring"),
    opens_graphs=True,
    packages=("openvino",),
    install="lucid-deploy[openvino]",
)
