"""A checkpoint in Hugging Face's own class: a reference that this toolkit did not write.

What a class of transformers calls float64 is not: norms, softmax and rotary angles are cast to float32 whatever the
model's type. Here they are cast to float64 instead, so that what is left between its numbers and ours is a difference
in what is computed. Rotary frequencies are computed in float64 and then rounded to float32 once, as checkpoints were
trained with and :mod:`lucid_deploy.model.rope` has them: transformers' own may be off by two units in the last place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.config_file import read_object
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.float64 import all_in_float64
from lucid_deploy.parity.record import KINDS, TensorId, TensorRows, Trace
from lucid_deploy.parity.targets import Reference
from lucid_deploy.runtimes.session import Array

if TYPE_CHECKING:
    from torch import Tensor

KIND = "transformers"
INSTEAD = "Verify without --against, or with --golden and a file that the model's own code has written."
# LUCID's keys that are not about the solve, and the values with which they say what the class of transformers does.
_SAME: dict[str, bool] = {"use_rope": True, "use_beta": False, "use_qknorm": False}


class TransformersModel:
    """A checkpoint in the class of transformers that its ``model_type`` names; weights are read at the first run."""

    def __init__(self, source: Checkpoint, layers: tuple[LayerDescription, ...]) -> None:
        self._source, self._layers = source, layers
        self._model: Any = None
        _check_layers(source, layers)
        self._config, self.class_name = _config_and_class(source)
        _check_keys(source, self._config, self.class_name)

    @property
    def reference(self) -> Reference:
        """This model, as a reference for reports."""
        words = f"transformers' {self.class_name} in float64 with eager attention"
        return Reference(KIND, words, independent=True)

    def trace(self, ids: Array) -> Trace:
        """Run tokens, int64 ``(T,)``, in one call; return logits, states, and the rows of K and V that are kept."""
        import torch

        if self._model is None:
            self._model = self._load()
        with torch.no_grad(), all_in_float64():
            found = self._model(torch.from_numpy(np.asarray(ids, dtype=np.int64))[None], use_cache=True)
        tensors: dict[TensorId, TensorRows] = {}
        for index, (layer, kept) in enumerate(zip(self._layers, found.cache.layers, strict=True)):
            for place, tensor in enumerate(decoded_layout(layer.cache)):
                tensors[TensorId.of(index, place, tensor, layer)] = _kept(kept, tensor, len(ids))
        tensors[TensorId(len(self._layers), KINDS.index("logits"))] = TensorRows(found.logits.numpy())
        return Trace(tensors)

    def _load(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from lucid_deploy.model.transformers_class.module import quiet

        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self._source.directory,
                config=self._config,
                dtype=torch.float64,
                attn_implementation="eager",
                experts_implementation="eager",  # its grouped product takes no float64
                local_files_only=True,
                output_loading_info=True,
            )
        model, report = loaded
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            names = sorted(map(str, report.get(what) or ()))
            if names:
                raise LucidError(
                    f"transformers' {self.class_name} does not read {self._source.directory} as it stands: "
                    f"{what.replace('_keys', '')} weights, such as {names[0]}. {INSTEAD}"
                )
        _exact_frequencies(model)
        return model.eval()


def _exact_frequencies(model: Any) -> None:
    """Compute rotary frequencies and other tables in float64, and round them to float32 once."""
    from lucid_deploy.model.transformers_class.module import restore_buffers

    for module in model.modules():
        for name in module._non_persistent_buffers_set & module._buffers.keys():
            table = module._buffers[name]
            module._buffers[name] = table.float() if table is not None and table.is_floating_point() else table
    restore_buffers(model)


def _kept(layer: Any, tensor: CacheTensor, tokens: int) -> TensorRows:
    """Return a tensor of a layer's cache as transformers keeps it."""
    if tensor.sort != "state":
        return _rows(layer.keys if tensor.name == "key" else layer.values, tokens)
    x = layer.recurrent_states[0]
    if tensor.name == "conv_state":
        x = layer.conv_states[0][..., -tensor.shape[-1] :]  # it keeps one more than the convolution needs
    return TensorRows(x.reshape(1, 1, -1).numpy(), tokens - 1)


def _rows(x: Tensor, tokens: int) -> TensorRows:
    """Return ``(1, KV, held, D)`` as rows ``(1, held, KV·D)``: layers over a window keep the last ones only."""
    held = x.shape[2]
    return TensorRows(x.transpose(1, 2).reshape(1, held, -1).numpy(), tokens - held)


def _check_layers(source: Checkpoint, layers: tuple[LayerDescription, ...]) -> None:
    other = [index for index, layer in enumerate(layers) if layer.solves]
    if other:
        first = layers[other[0]].kind
        raise LucidError(
            f"transformers cannot compute {source.directory}: {len(other)} of its {len(layers)} layers are of the kind "
            f"{first!r} (the first is layer {other[0]}), and its classes have standard attention. {INSTEAD}"
        )


def _config_and_class(source: Checkpoint) -> tuple[Any, str]:
    try:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES
    except ImportError as error:
        raise missing_extra("transformers", "transformers", "verify against it") from error
    from lucid_deploy.model.transformers_class.module import quiet

    raw = read_object(source.directory / "config.json")
    kind = raw.get("model_type", "")
    if kind not in CLASSES:
        named = "has no model_type" if not kind else f"has the model_type {kind!r}, of which it has no causal model"
        raise LucidError(f"transformers cannot compute {source.directory}: its config.json {named}. {INSTEAD}")
    with quiet():
        config = AutoConfig.from_pretrained(source.directory, local_files_only=True, trust_remote_code=False)
    return config, str(CLASSES[kind])


def _check_keys(source: Checkpoint, config: Any, class_name: str) -> None:
    """Refuse keys that the class does not read although they change the numbers."""
    from lucid_deploy.model.transformers_class.configuration import unread_keys

    raw = read_object(source.directory / "config.json")
    for key, value in unread_keys(raw, config, source.assumed_unused).items():
        raise LucidError(
            f"transformers' {class_name} computes another model than {source.directory}: it does not read the key "
            f"{key} of config.json, which is {value!r}. {INSTEAD}"
        )
    for key, wanted in _SAME.items():
        if raw.get(key) not in (None, wanted):
            raise LucidError(
                f"transformers' {class_name} computes another model than {source.directory}: it has no {key}, which "
                f"is {raw[key]!r} in config.json. {INSTEAD}"
            )
