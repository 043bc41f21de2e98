"""Checkpoints in the published layout: ``config.json`` beside single or sharded safetensors. Pickle is never read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.adapter import Adapter
from lucid_deploy.model.build import family_for, make_model, parse_model_config
from lucid_deploy.model.config import LUCID, LucidConfig
from lucid_deploy.model.config_file import GenerationFile, checked, read_config, read_object, token_ids
from lucid_deploy.model.config_keys import unknown_keys, value_of
from lucid_deploy.model.description import describe
from lucid_deploy.model.families import Family, StoredParameter, family_of
from lucid_deploy.model.packed.read import PackedParts, find_parts, split_layout
from lucid_deploy.model.tensor_files import (
    find_tensor_files,
    open_safetensors,
    refuse_adapter,
)
from lucid_deploy.model.variants import listed, settle
from lucid_deploy.plugins.table import UNIT

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.lucid import CausalModel
    from lucid_deploy.model.packed.weight import FloatWeight, PackedWeight

DEMO = "demo"
_DERIVED = ("rotary_emb.inv_freq",)  # buffers of old Llama checkpoints; they follow from the configuration
_DTYPES = ("F64", "F32", "F16", "BF16")  # types of unquantized weights, as safetensors spells them
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def resolve(checkpoint: str | Path) -> Path:
    """Return the directory of a checkpoint; the word ``demo`` stands for the bundled one."""
    if str(checkpoint) == DEMO:
        return Path(__file__).resolve().parent.parent / "demo"
    return Path(checkpoint)


class Checkpoint:
    """An opened checkpoint: its configuration, and its tensors, which are read one at a time.

    Opening checks the names and shapes of all tensors against the configuration. It reads only headers, except for an
    adapter, and for a tied head stored beside the embedding, which must equal it.

    Args:
        checkpoint: A directory, or the word ``demo``.
        assume_unused: Unknown keys of ``config.json`` that the user declares to have no effect.
        diagonal: The diagonal of LUCID's triangular system, as in :class:`LucidConfig`.
        state_dtype: Type of recurrent states; None: float32.
        adapter: Directory of a LoRA adapter that is added to the weights; None: none.
        trust_remote_code: Whether to run the checkpoint's own model code if transformers has no class for it.

    Attributes:
        config: The model's configuration, completed from the tensors and the options above.
        tied: Whether ``lm_head.weight`` is the embedding.
        notes: Notes for the user, such as settings inferred from the tensors because ``config.json`` lacks them.
        assumed_unused: The unknown keys that the user declared unused, with their values.
        layout: How its quantized weights are stored; None: it is not quantized.
        packed: The parts of each quantized weight, by the name that the weight would have unquantized.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        assume_unused: Collection[str] = (),
        diagonal: str = UNIT,
        state_dtype: str | None = None,
        adapter: str | Path | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.directory = resolve(checkpoint)
        refuse_adapter(self.directory)
        raw, self.layout = split_layout(read_config(self.directory), self.directory)
        if trust_remote_code or raw.get("auto_map"):
            take_own_code(raw, self.directory, trust_remote_code)
        where = str(self.directory / "config.json")
        config = parse_model_config(raw, where, assume_unused)
        self._family = family_for(config)
        raw = self._family.normalized(raw, where)
        self.assumed_unused = {key: value_of(raw, key) for key in assume_unused if key in unknown_keys(raw)}
        self._file_of = find_tensor_files(self.directory)
        self._handles: dict[Path, Any] = {}
        self._named = {name: name for name in self._file_of}  # names in the files, by the names that the family expects
        self.packed = self._find_packed()
        config, notes = settle(config, raw, self._named, str(self.directory))
        config, of_tokens = _with_generation_eos(config, self.directory)
        config = _with_diagonal(config, diagonal, str(self.directory))
        self.config: LucidConfig = _with_states(config, state_dtype, str(self.directory))
        self.tied = self.config.tie_word_embeddings
        self.notes = (*notes, *of_tokens, *self._share_head())
        self.adapter: Adapter | None = None
        self._check_tensors()
        if adapter is not None:
            self.adapter = self._open_adapter(adapter)

    def stored_name(self, name: str) -> str:
        """Return the name to read a weight by: the embedding's for a tied ``lm_head.weight``, otherwise its own."""
        return _EMBEDDING if self.tied and name == _HEAD else name

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight of the model except a tied head, by name."""
        return {name: shape for name, shape in expected_shapes(self.config).items() if self.stored_name(name) == name}

    def is_same(self, one: str, other: str) -> bool:
        """Whether two weights of the model are read from the same tensor of the checkpoint in the same way."""
        if one == other or self.stored_name(one) == other:
            return True
        known = expected_shapes(self.config)
        return {one, other} <= known.keys() and self._family.stored(one, self.config) == self._family.stored(
            other, self.config
        )

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor of the model, in its stored type; float64 where the family adds an offset.

        Quantized weights are dequantized without rounding; they and sums with an adapter are float32 or float64.
        """
        place = self._family.stored(name, self.config)
        if place.join is not None and place.name not in self._named:
            data = select_rows(place.join([self._read(StoredParameter(part)) for part, _ in place.parts]), place)
        else:
            data = self._read(place)
        return data.double() + place.plus if place.plus else data

    def _read(self, place: StoredParameter) -> torch.Tensor:
        """Read one stored tensor, or some rows of it, with the adapter merged."""
        if place.name in self.packed:
            return select_rows(self.packed[place.name].read(self._get, self.directory).dequantize(), place)
        stored = self._named[place.name]
        if self.adapter is not None and place.name in self.adapter.weights:
            return select_rows(self.adapter.merged(place.name, self._get(stored)), place)
        if place.rows is not None and place.groups == 1:
            return self._get(stored, slice(*place.rows))
        return select_rows(self._get(stored), place)

    def _get(self, stored: str, rows: slice | None = None) -> torch.Tensor:
        import safetensors

        path = self._file_of[stored]
        file = self._open(path)
        try:
            data: torch.Tensor = file.get_tensor(stored) if rows is None else file.get_slice(stored)[rows]
        except safetensors.SafetensorError as error:
            raise LucidError(f"{path}: tensor {stored} cannot be read: {error}") from error
        return data

    def packed_weight(self, name: str) -> PackedWeight | FloatWeight | None:
        """Read a weight of the model without dequantizing it; None if it is not quantized."""
        place = self._family.stored(name, self.config)
        if place.name not in self.packed:
            return None
        if place.rows is not None or place.plus:
            raise LucidError(
                f"{self.directory}: {place.name} holds several weights of the model in one quantized tensor, which is "
                "not supported. Use the checkpoint that it was quantized from."
            )
        return self.packed[place.name].read(self._get, self.directory)

    def _open_adapter(self, directory: str | Path) -> Adapter:
        adapter = Adapter(directory)
        quantized = sorted(adapter.weights & self.packed.keys())
        if quantized:
            raise LucidError(
                f"{adapter.directory} changes {quantized[0]}, which {self.directory} stores quantized: the merged "
                "weight would have to be quantized again. Use the checkpoint that it was quantized from."
            )
        tied = sorted(adapter.weights & {self._family.stored(name, self.config).name for name in (_EMBEDDING, _HEAD)})
        if self.tied and tied:
            raise LucidError(
                f"{adapter.directory} changes {tied[0]}, but in {self.directory} embedding and lm_head are one "
                "weight (tie_word_embeddings). Merge it with PEFT's merge_and_unload, and export the result."
            )
        shapes = {name: tuple(self._header(name).get_shape()) for name in adapter.weights & self._named.keys()}
        self.notes = (*self.notes, *adapter.check(shapes.get, self.directory))
        return adapter

    def _find_packed(self) -> dict[str, PackedParts]:
        """Find the quantized weights, and list each in ``self._named`` by its own name instead of its parts' names."""
        if self.layout is None:
            return {}
        found = find_parts(
            self.layout,
            self._named,
            lambda name: tuple(self._header(name).get_shape()),
            self.directory,
            lambda name: str(self._header(name).get_dtype()),
        )
        for name, parts in found.items():
            for part in parts.names.values():
                self._named.pop(part, None)
            self._named[name] = next(iter(parts.names.values()))
        return found

    def _open(self, path: Path) -> Any:
        if path not in self._handles:
            self._handles[path] = open_safetensors(path)
        return self._handles[path]

    def _header(self, name: str) -> Any:
        """Return safetensors' slice of a stored tensor, which has its shape and type without reading its values."""
        stored = self._named[name]
        return self._open(self._file_of[stored]).get_slice(stored)

    def _share_head(self) -> tuple[str, ...]:
        """Use a tied head as the embedding where only the head is stored, as accelerate may save it; return notes."""
        embedding, head = (self._family.stored(name, self.config).name for name in (_EMBEDDING, _HEAD))
        if self.tied and self.layout is not None and head in self.packed:
            raise LucidError(
                f"{self.directory}: {head} is quantized by {self.layout.name}, and tie_word_embeddings is true, so it "
                "would be the embedding too, which is not supported. If both are stored, set tie_word_embeddings to "
                "false; otherwise use the checkpoint that it was quantized from."
            )
        if not self.tied or embedding in self._named or head not in self._named:
            return ()
        self._named[embedding] = self._named.pop(head)
        return (f"{head} is stored and {embedding} is not: it is used as both.",)

    def _check_tensors(self) -> None:
        wanted = file_shapes(self.config, self._family, self._named)
        read = [name for name in self._named if not name.endswith(_DERIVED)]
        unused = self._family.unused_tensors
        read = [name for name in read if name in wanted or not any(re.search(part, name) for part in unused)]
        found = {
            name: self.packed[name].shape if name in self.packed else tuple(self._header(name).get_shape())
            for name in read
        }
        if self.tied:
            self._check_tied_head(found)
        problems = [f"missing: {listed(sorted(wanted.keys() - found.keys()))}"] if wanted.keys() - found.keys() else []
        if found.keys() - wanted.keys():
            problems.append(f"unexpected: {listed(sorted(found.keys() - wanted.keys()))}")
        wrong = [
            f"{name} is {list(found[name])}, config.json asks for {list(wanted[name])}"
            for name in sorted(wanted.keys() & found.keys())
            if found[name] != wanted[name]
        ]
        if wrong:
            problems.append(f"wrong shape: {listed(wrong)}")
        plain = (wanted.keys() & found.keys()) - self.packed.keys()
        stored = {name: self._header(name).get_dtype() for name in plain}
        types = [f"{name} is {kind}" for name, kind in sorted(stored.items()) if kind not in _DTYPES]
        if types:
            problems.append(f"stored as another type than {', '.join(_DTYPES)}: {listed(types)}")
        if problems:
            raise LucidError(
                f"The tensors of {self.directory} do not fit its config.json. " + "; ".join(problems) + "."
            )

    def _check_tied_head(self, found: dict[str, tuple[int, ...]]) -> None:
        """Raise a LucidError if a tied head is stored beside the embedding and differs from it."""
        import torch

        embedding, named = (self._family.stored(name, self.config).name for name in (_EMBEDDING, _HEAD))
        if named not in found or found.get(embedding) != found[named]:
            return
        del found[named]
        if not torch.equal(self.tensor(_HEAD), self.tensor(_EMBEDDING)):
            raise LucidError(
                f"{self.directory}: tie_word_embeddings is true, but lm_head.weight differs from "
                "model.embed_tokens.weight. Set tie_word_embeddings to false or remove lm_head.weight."
            )


def select_rows(whole: torch.Tensor, place: StoredParameter) -> torch.Tensor:
    """Return a parameter's rows of a fused tensor, or the whole tensor if ``place`` names no rows."""
    if place.rows is None:
        return whole
    return whole.unflatten(0, (place.groups, -1))[:, slice(*place.rows)].flatten(0, 1)


def file_shapes(config: LucidConfig, family: Family, named: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a checkpoint must store; ``named``: the names that it stores."""
    wanted: dict[str, tuple[int, ...]] = {}
    for name, shape in expected_shapes(config).items():
        if config.tie_word_embeddings and name == _HEAD:
            continue
        place = family.stored(name, config)
        if place.parts and place.name not in named:  # for example one tensor per expert; a stacked one is accepted too
            wanted.update(place.parts)
            continue
        if place.rows is not None:
            shape = (max(place.rows[1] * place.groups, *wanted.get(place.name, (0,))[:1]), *shape[1:])
        wanted[place.name] = shape
    return wanted


def take_own_code(raw: dict[str, Any], directory: Path, trusted: bool) -> None:
    """Register or refuse the checkpoint's own model code, if any; the arguments are those of ``take_code``."""
    if family_of(raw) is not None:
        if trusted:
            raise LucidError(f"{directory} needs no code of its own: leave out --trust-remote-code.")
        return
    import lucid_deploy.model.transformers_class.module  # noqa: F401 (without transformers, it says what to install)
    from lucid_deploy.model.transformers_class.remote_code import take_code

    take_code(raw, directory, trusted)


def _with_diagonal(config: LucidConfig, diagonal: str, where: str) -> LucidConfig:
    if diagonal != UNIT and LUCID not in config.kinds:
        raise LucidError(f"{where} has no LUCID layers, so there is no diagonal to choose: leave out --diagonal.")
    return dataclasses.replace(config, diagonal=diagonal)


def _with_states(config: LucidConfig, state_dtype: str | None, where: str) -> LucidConfig:
    if state_dtype is None:
        return config
    tensors = (tensor for layer in describe(config, "float32") for tensor in layer.cache)
    if not any(tensor.sort == "state" for tensor in tensors):
        raise LucidError(f"No layer of {where} has a recurrent state: leave out --state-dtype.")
    return dataclasses.replace(config, state_dtype=state_dtype)


def _with_generation_eos(config: LucidConfig, directory: Path) -> tuple[LucidConfig, tuple[str, ...]]:
    """Add the end tokens of ``generation_config.json``: instruction-tuned models often list theirs only there.

    If the file exists, transformers ignores those in config.json, so a note lists any that the file leaves out.
    """
    path = directory / "generation_config.json"
    if not path.is_file():
        return config, ()
    named = token_ids(checked(read_object(path), GenerationFile, str(path)).eos_token_id)
    more = tuple(token for token in named if token not in config.eos_token_ids)
    if more and max(more) >= config.vocab_size:
        raise LucidError(f"{path}: eos_token_id {max(more)} is outside the vocabulary (0 to {config.vocab_size - 1}).")
    alone = ", ".join(str(token) for token in config.eos_token_ids if token not in named)
    note = (
        f"Generation also stops at eos_token_id {alone} of config.json, which generation_config.json does not list: "
        "transformers continues after it."
    )
    return dataclasses.replace(config, eos_token_ids=(*config.eos_token_ids, *more)), (note,) if alone else ()


def load_model(
    checkpoint: str | Path | Checkpoint,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    implementation: str = "blocked",
    progress: Callable[[int, int], None] | None = None,
) -> CausalModel:
    """Load a checkpoint's model, without gradients, float32 by default; ``progress`` gets (weights loaded, total)."""
    import torch

    source = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    with torch.device("meta"):
        model = make_model(source.config, implementation)
    names = list(expected_shapes(source.config))
    state: dict[str, torch.Tensor] = {}
    for done, name in enumerate(names):
        stored = source.stored_name(name)
        state[name] = (
            state[stored] if stored in state else source.tensor(stored).to(device=device, dtype=dtype or torch.float32)
        )
        if progress is not None:
            progress(done + 1, len(names))
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def expected_shapes(config: LucidConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a configuration's PyTorch model, by name and in the model's order."""
    import torch

    with torch.device("meta"):
        model = make_model(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
