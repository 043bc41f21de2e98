"""What another version of PyTorch may not have is None."""

from __future__ import annotations

import importlib

from lucid_deploy.export.torch_internals import internal


def test_modules_and_what_they_have() -> None:
    assert internal("torch.fx.config") is importlib.import_module("torch.fx.config")
    assert internal("torch.fx.config", "do_not_emit_stack_traces") is False


def test_what_is_not_there_is_none() -> None:
    assert internal("torch.no_such_module") is None
    assert internal("torch.no_such_module", "name") is None
    assert internal("torch.fx.config", "no_such_name") is None
