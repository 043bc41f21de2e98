"""Running a stage of engines: what is bound, memory of small inputs, failures, and the end."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.device_memory import MemoryPool
from lucid_deploy.runtimes.tensorrt.engine_contexts import EngineContexts, Engines
from tests.runtimes.tensorrt.fake_gpu import FakeDevice


class Context:
    """Takes any shape but an empty one."""

    def __init__(self) -> None:
        self.bound: dict[str, Any] = {}
        self.fails = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.bound[f"shape of {name}"] = shape
        return 0 not in shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.bound[name] = address

    def execute_async_v3(self, _stream: int) -> bool:
        return not self.fails


class Made:
    """Contexts of one stage whose engine reads ``ids`` and writes ``logits``."""

    def __init__(self) -> None:
        self.context, self.device, self.saved = Context(), FakeDevice(), 0
        manifest: Any = SimpleNamespace(engines={"decode": None})
        known = {"decode": frozenset({"ids", "logits"})}
        self.engines = Engines(manifest, lambda _: self.context, known, [], self._save)
        self.contexts = EngineContexts(self.engines, self.device, MemoryPool(self.device))

    def _save(self) -> None:
        self.saved += 1


def test_what_an_engine_does_not_read_is_passed_over() -> None:
    made = Made()
    made.contexts.bind("decode", {"ids": (16, (2, 1)), "positions": (32, (2, 1))}, {"logits": 64})
    assert made.context.bound == {"shape of ids": (2, 1), "ids": 16, "logits": 64}
    assert "decode" in made.contexts and "verify" not in made.contexts


def test_small_inputs_stay_where_they_are_until_they_outgrow_it() -> None:
    made = Made()
    first = made.contexts.upload("decode", {"mask": np.arange(40)})
    again = made.contexts.upload("decode", {"mask": np.arange(50)})  # within twice as much
    longer = made.contexts.upload("decode", {"mask": np.arange(200)})
    assert first["mask"] == (again["mask"][0], (40,)) and longer["mask"][0] != first["mask"][0]
    assert np.array_equal(made.device.at(longer["mask"][0], 1600).view(np.int64), np.arange(200))


def test_a_failure_says_what_tensorrt_said_once() -> None:
    made = Made()
    made.engines.errors.append("no kernel for this")
    with pytest.raises(LucidError, match=r"The decode engine refuses the shape \(0, 1\) of ids: no kernel for this"):
        made.contexts.bind("decode", {"ids": (16, (0, 1))}, {})
    made.context.fails = True
    with pytest.raises(LucidError, match="The decode engine fails: ") as caught:
        made.contexts.execute("decode")
    assert "no kernel" not in str(caught.value)


@pytest.mark.usefixtures("own_garbage")
@pytest.mark.parametrize("closes", [True, False])
def test_what_was_compiled_is_kept_once_at_the_end(closes: bool) -> None:
    made = Made()
    if closes:
        made.contexts.close()
        assert made.contexts.closed and "decode" not in made.contexts
        made.contexts.close()
    del made.contexts
    gc.collect()
    assert made.saved == 1
