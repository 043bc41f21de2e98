"""Write ``genai_config.json``, with which onnxruntime-genai runs an artifact.

The format is onnxruntime-genai's ("Config reference" in its documentation). A ``decoder-pipeline`` model runs the stage
marked ``run_on_prompt`` for the prompt and the one marked ``run_on_token_gen`` for every further token, and hands each
``present`` tensor to the next step as the ``past_key_values`` tensor of the same layer.

A pipeline does not hand on recurrent states. A ``decoder``, one graph, does: it finds the inputs ``conv_state`` and
``recurrent_state`` by itself. So a model with states becomes a ``decoder`` of its prefill graph, which decodes too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import STAGES, Manifest

FILE = "genai_config.json"
_ROWS = {("key", "rows"), ("value", "rows")}
_STATES = {("conv_state", "state"), ("recurrent_state", "state")}
_FLAGS = {"prefill": "run_on_prompt", "decode": "run_on_token_gen"}


def is_supported(manifest: Manifest) -> bool:
    """Whether onnxruntime-genai can run this artifact: growing caches of keys, values and states, no adapters.

    onnxruntime-genai passes no ``cache_length`` to static caches (``past_present_share_buffer``), takes a
    ``recurrent_state`` only together with a ``conv_state``, and keeps the cache in the model's type.
    """
    layers = [{(tensor.name, tensor.sort) for tensor in layer.cache} for layer in manifest.layers]
    same_type = manifest.cache_dtype == manifest.dtype
    plain = manifest.cache == "growing" and manifest.adapters is None  # genai passes no adapter_ids
    return plain and same_type and all(layer in (_ROWS, _STATES) for layer in layers)


def genai_config(manifest: Manifest, directory: Path) -> dict[str, Any]:
    """Return the content of ``genai_config.json``."""
    config, generation = manifest.config, _generation_config(directory)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    hybrid = any(tensor.sort == "state" for layer in manifest.layers for tensor in layer.cache)
    if hybrid:
        decoder["filename"] = manifest.graphs["prefill"].file
    else:
        decoder["pipeline"] = [{stage: _stage(manifest, stage)} for stage in STAGES]
    eos = list(config.eos_token_ids)
    model = {
        "type": "decoder" if hybrid else "decoder-pipeline",
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "pad_token_id": generation.get("pad_token_id", eos[0] if eos else None),
        "decoder": decoder,
    }
    return {"model": _known(model), "search": _search(generation, config.max_position_embeddings)}


def _stage(manifest: Manifest, stage: str) -> dict[str, Any]:
    graph = manifest.graphs[stage]
    return {
        "filename": graph.file,
        "inputs": [info.name for info in graph.inputs],
        "outputs": [info.name for info in graph.outputs],
        **{flag: stage == name for name, flag in _FLAGS.items()},
    }


def _search(generation: dict[str, Any], context: int) -> dict[str, Any]:
    chosen = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
    return {
        **{name: generation.get(name, default) for name, default in chosen.items()},
        "max_length": context,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": False,
    }


def _known(items: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in items.items() if value is not None and value != []}


def _generation_config(directory: Path) -> dict[str, Any]:
    """Return the checkpoint's generation settings; {} if it has none. Broken files were refused before."""
    path = directory / "generation_config.json"
    if not path.is_file():
        return {}
    settings = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in settings.items() if value is not None}
