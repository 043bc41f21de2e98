"""Write one new row per batch row into a cache buffer of fixed size."""

from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row

__all__ = ["scatter_row"]
