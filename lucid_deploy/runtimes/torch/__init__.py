"""Running the PyTorch model with an artifact's weights."""

from lucid_deploy.runtimes.runtime import Capabilities

CAPABILITIES = Capabilities(
    dtypes=("float32", "float16", "bfloat16"),
    devices=("cpu", "cuda"),
    caches=("growing", "static"),
    cache_dtypes=("float16", "int8", "fp8"),
    cache_sorts=("rows", "ring", "state"),
    runs_graphs=False,
    reads_layers=True,
    packages=("torch",),
    install="lucid-deploy[export]",
)
