"""What the phases of a verification are called: once for those that run them and those that announce them."""

FILES = "Files: sha256"
WEIGHTS = "Weights: every element"
REFERENCE = "PyTorch in float64: the reference"
TRANSFORMERS = "transformers in float64: the other reference"
CONDITIONING = "Conditioning of the solves"
COST = "Cost of quantization"
INSIDE_REFERENCE = "Causes: the reference's layers"
INSIDE_CANDIDATE = "Causes: the artifact's layers"
HINTS = "Causes: trying guesses"


def loading(dtype: str) -> str:
    """Reading a checkpoint's weights."""
    return f"Loading the weights in {dtype}"


def baseline(dtype: str) -> str:
    """The baseline in every scenario."""
    return f"PyTorch in {dtype}: the gates"


def rounded(cache_dtype: str) -> str:
    """The second reference, whose cache rounds."""
    return f"PyTorch in float64 with a cache in {cache_dtype}"


def schedules(dtype: str, cache_dtype: str) -> str:
    """The baseline in every schedule, where a cache rounds."""
    return f"PyTorch in {dtype} with a cache in {cache_dtype}: the gates"


def recording(dtype: str) -> str:
    """Our own model in the type of a golden file."""
    return f"PyTorch in {dtype}: what recording in it cost"


def candidate(runtime: str, dtype: str) -> str:
    """What is verified."""
    return f"{runtime} in {dtype}: what is verified"


def inside_baseline(dtype: str) -> str:
    """The baseline's layers, one by one."""
    return f"Causes: PyTorch's layers in {dtype}"


def text(runtime: str) -> str:
    """The candidate on a text."""
    return f"Perplexity in {runtime}"
