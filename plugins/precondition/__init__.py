"""The preconditioner: solve ``L Y = V`` for the values that LUCID attention averages."""

from lucid_deploy.plugins.precondition.torch_operator import precondition

__all__ = ["precondition"]
