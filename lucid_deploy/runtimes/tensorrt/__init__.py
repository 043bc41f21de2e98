"""Building TensorRT engines of an artifact, and running them."""

from lucid_deploy.runtimes.runtime import Capabilities

CAPABILITIES = Capabilities(
    dtypes=("float32", "float16", "bfloat16"),
    devices=("cuda",),
    caches=("growing", "static"),
    cache_dtypes=("fp8",),
    graphs=("functions",),  # a plugin computes our operators
    cache_sorts=("rows", "state"),
    builds_engines=True,
    packages=("tensorrt_rtx", "tensorrt"),  # one of the two
    install="lucid-deploy[rtx]",
)
