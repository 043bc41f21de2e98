"""Running exported graphs in onnxruntime, whose capabilities depend on the execution provider."""

from dataclasses import replace

from lucid_deploy.runtimes.runtime import Capabilities

_GPU = Capabilities(
    dtypes=("float32", "float16"),  # tensors go through numpy, which has no bfloat16
    devices=("cuda",),
    cache_sorts=("rows", "ring", "state"),
    reads_layers=True,
    packages=("onnxruntime",),
    install="lucid-deploy[cpu]",
)
_CPU = replace(
    _GPU,
    devices=("cpu",),
    caches=("static", "growing"),  # static first, as it is faster; GPU providers run growing only
    cache_dtypes=("float16", "int8", "fp8"),
    rounds_activations=True,
)
# These providers build an engine of a whole graph, as `lucid-deploy build` does; neither supports rings.
_WHOLE = replace(_GPU, graphs=("functions",), cache_sorts=("rows", "state"), reads_layers=False)
CAPABILITIES = {"cpu": _CPU, "cuda": _GPU, "tensorrt": _WHOLE, "nv-tensorrt-rtx": _WHOLE}
