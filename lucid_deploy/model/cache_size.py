"""How much memory the caches of a model take."""

from lucid_deploy.cache.storage import cache_tensors
from lucid_deploy.model.config import LucidConfig


def bytes_per_token(config: LucidConfig, cache_dtype: str) -> int:
    """Return the bytes that one token takes in the caches of all layers."""
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
    row = sum(item.width * sizes[item.dtype] for item in cache_tensors(cache_dtype, config.head_dim))
    return config.num_hidden_layers * config.num_key_value_heads * row
