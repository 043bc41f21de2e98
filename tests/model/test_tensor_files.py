"""The files of a checkpoint: single, sharded and linked ones load, and what is broken is one error that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.model.stored_checkpoints import parameters, refusal, stored

MakeCheckpoint = Callable[..., Path]

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


def shard(checkpoint: Path) -> dict[str, str]:
    """Split a checkpoint's tensors over two files; return the index's weight map."""
    tensors = stored(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, checkpoint / file)
    return write_index(checkpoint, {name: file for file, part in files.items() for name in part})


def write_index(checkpoint: Path, weight_map: dict[str, str]) -> dict[str, str]:
    (checkpoint / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_shards_load_as_the_single_file_does(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    whole = parameters(checkpoint)
    shard(checkpoint)
    loaded = parameters(checkpoint)
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)


def test_links_into_a_download_cache_load(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint("store")
    shard(checkpoint)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in checkpoint.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert parameters(snapshot).keys() == parameters(checkpoint).keys()


def test_pickle_is_never_read(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weight": Trap()}, checkpoint / "pytorch_model.bin")
    assert "Pickle" in refusal(checkpoint)
    assert not (tmp_path / "ran").exists()


def damaged(content: bytes, how: str) -> bytes:
    return {
        "cut in the data": content[:-5000],
        "cut in the header": content[:100],
        "empty": b"",
        "header is not JSON": content[:8] + b"#" * 50 + content[58:],
        "header longer than the file": b"\xff" * 6 + b"\x00\x00" + content[8:],
        "offsets beyond the end": content.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "cut in the data",
        "cut in the header",
        "empty",
        "header is not JSON",
        "header longer than the file",
        "offsets beyond the end",
    ],
)
def test_a_damaged_file_is_named(make_checkpoint: MakeCheckpoint, how: str) -> None:
    checkpoint = make_checkpoint()
    path = sorted(checkpoint.glob("*.safetensors"))[-1]
    content = path.read_bytes()
    path.write_bytes(damaged(content, how))
    assert path.read_bytes() != content
    assert f"{path} is not a readable safetensors file" in refusal(checkpoint)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"], ids=lambda text: text
)
def test_an_index_of_another_form_is_refused(make_checkpoint: MakeCheckpoint, content: str) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / INDEX).write_text(content)
    assert f"{checkpoint / INDEX} is not an index of safetensors" in refusal(checkpoint)


@pytest.mark.parametrize("outside", ["../other/model.safetensors", "/etc/passwd", "shards/model.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(make_checkpoint: MakeCheckpoint, outside: str) -> None:
    make_checkpoint("other")
    checkpoint = make_checkpoint()
    write_index(checkpoint, {**shard(checkpoint), Q_PROJ: outside})
    message = refusal(checkpoint)
    assert "names shards that do not lie beside it, which are not read: " in message
    assert outside in message


def test_a_shard_that_lacks_its_tensor_is_named(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    weight_map = shard(checkpoint)
    wrong = next(file for file in weight_map.values() if file != weight_map[Q_PROJ])
    write_index(checkpoint, {**weight_map, Q_PROJ: wrong})
    message = refusal(checkpoint)
    assert f"{wrong} lacks tensors that the index places there: {Q_PROJ}" in message


def test_a_single_file_beside_shards_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    """transformers reads the single file, others the shards."""
    checkpoint = make_checkpoint()
    tensors = stored(checkpoint)
    weight_map = shard(checkpoint)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, checkpoint / "model.safetensors")
    assert f"{checkpoint} has model.safetensors, but {INDEX} lists other shards" in refusal(checkpoint)
    write_index(checkpoint, dict.fromkeys(weight_map, "model.safetensors"))
    assert torch.equal(parameters(checkpoint)[Q_PROJ], tensors[Q_PROJ] * 2)


@pytest.mark.parametrize("listed", [True, False], ids=["in the index", "forgotten by it"])
def test_a_tensor_in_two_shards_is_refused(make_checkpoint: MakeCheckpoint, listed: bool) -> None:
    checkpoint = make_checkpoint()
    tensors, weight_map = stored(checkpoint), shard(checkpoint)
    other = next(file for file in weight_map.values() if file != weight_map[Q_PROJ])
    held = {name: tensors[name] for name in weight_map if weight_map[name] == other}
    save_file({**held, Q_PROJ: tensors[Q_PROJ] * 2}, checkpoint / other)
    if not listed:
        del weight_map[Q_PROJ]
        write_index(checkpoint, weight_map)
    message = refusal(checkpoint)
    assert f"both hold {Q_PROJ}" in message and other in message and "\n" not in message


def test_tensors_that_the_index_forgot_are_read(make_checkpoint: MakeCheckpoint) -> None:
    """As by transformers, and so that none is passed over that the model does not have."""
    checkpoint = make_checkpoint()
    tensors, weight_map = stored(checkpoint), shard(checkpoint)
    file = weight_map.pop(Q_PROJ)
    write_index(checkpoint, weight_map)
    assert torch.equal(parameters(checkpoint)[Q_PROJ], tensors[Q_PROJ])
    held = {name: tensors[name] for name in [*weight_map, Q_PROJ] if weight_map.get(name, file) == file}
    bias = Q_PROJ.replace("weight", "bias")
    save_file({**held, bias: torch.ones(8)}, checkpoint / file)
    assert f"unexpected: {bias}" in refusal(checkpoint)


@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_refused(make_checkpoint: MakeCheckpoint, alone: bool) -> None:
    """transformers with peft adds it to the weights of the model that it names."""
    checkpoint = make_checkpoint()
    (checkpoint / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    if alone:
        (checkpoint / "config.json").unlink()
        (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    message = refusal(checkpoint)
    assert f"{checkpoint} has an adapter" in message and "--merge-adapter" in message


@pytest.mark.parametrize("name", ["zero_to_fp32.py", "fsdp_0/__0_0.distcp", "model.bin"])
def test_shards_of_trainers_are_not_read(make_checkpoint: MakeCheckpoint, name: str) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(b"")
    assert "save the checkpoint as safetensors" in refusal(checkpoint)
