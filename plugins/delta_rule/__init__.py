"""The delta rule: a state that each token corrects by what it does not yet predict."""

from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule

__all__ = ["delta_rule"]
