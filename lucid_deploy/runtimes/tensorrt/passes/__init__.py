"""Graph passes that turn an exported graph into one TensorRT builds, one per file, each with its contract."""

from lucid_deploy.runtimes.tensorrt.passes.explicit_attention import explicit_attention
from lucid_deploy.runtimes.tensorrt.passes.fix_axis import fix_axis
from lucid_deploy.runtimes.tensorrt.passes.float8_cache import float8_cache
from lucid_deploy.runtimes.tensorrt.passes.half_attention import half_attention
from lucid_deploy.runtimes.tensorrt.passes.name_plugins import decomposable_attention, name_plugins
from lucid_deploy.runtimes.tensorrt.passes.plugin_domain import plugin_domain
from lucid_deploy.runtimes.tensorrt.passes.standard_attention import standard_attention
from lucid_deploy.runtimes.tensorrt.passes.strip_bodies import strip_bodies

__all__ = [
    "decomposable_attention",
    "explicit_attention",
    "fix_axis",
    "float8_cache",
    "half_attention",
    "name_plugins",
    "plugin_domain",
    "standard_attention",
    "strip_bodies",
]
