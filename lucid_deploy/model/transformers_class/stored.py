"""Find where checkpoints store the parameters of a transformers class.

transformers renames and joins tensors when it loads a checkpoint: for example, it stacks expert matrices, which
checkpoints store separately, into one tensor. We run its own conversions: backwards on the meta device to get the
stored names, and forwards on the tensors that are read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from lucid_deploy.errors import LucidError
from lucid_deploy.model.families import StoredParameter


def stored_parameters(net: Any) -> dict[str, StoredParameter]:
    """Return where a checkpoint stores each parameter of a class, by the class's parameter name."""
    named = dict(net.state_dict(keep_vars=True))
    stored = revert_weight_conversion(net, dict(named))
    names = {id(value): name for name, value in stored.items()}
    whole = {name: name if stored.get(name) is value else names.get(id(value), "") for name, value in named.items()}
    # A checkpoint stores one of several tied tensors. Those named .weight are skipped: tie_word_embeddings covers them.
    tied = {name: source for name, source in net.all_tied_weights_keys.items() if not name.endswith(".weight")}
    whole |= {name: whole[source] for name, source in tied.items() if whole.get(source)}
    found = {name: StoredParameter(place) for name, place in whole.items() if place}
    if len(found) < len(named):
        rest = {name: tuple(value.shape) for name, value in stored.items() if name not in whole.values()}
        found |= _joined(net, {name: named[name] for name in named if name not in found}, rest)
    return found


def _part(convert: Callable[[list[Tensor]], dict[str, Tensor]], name: str, tensors: list[Tensor]) -> Tensor:
    return convert(tensors)[name]


def _joined(net: Any, named: dict[str, Tensor], stored: dict[str, tuple[int, ...]]) -> dict[str, StoredParameter]:
    """Return how to build the parameters ``named`` from several ``stored`` tensors, or from one in another form."""
    conversions = get_model_conversion_mapping(net, add_legacy=False)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    whole = deepcopy(net)  # conversions look up its parameters' sizes later, when layers of net may have been replaced
    groups: dict[str, list[tuple[str, str]]] = {}  # (stored name, pattern), by the parameter that they are joined into
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters)
        if pattern is not None:
            groups.setdefault(target, []).append((name, pattern))
    found = {}
    for target, parts in groups.items():
        converter = next(each for each in converters if parts[0][1] in each.source_patterns)

        def convert(tensors: Iterable[Tensor], target: str = target, parts: Any = parts, of: Any = converter) -> Any:
            conversion = deepcopy(of)
            for (name, pattern), tensor in zip(parts, tensors, strict=True):
                conversion.add_tensor(target, name, pattern, tensor)
            return conversion.convert(target, model=whole, config=whole.config)

        like = next(iter(named.values()))
        made = convert(like.new_empty(stored[name]) for name, _ in parts)
        for name, value in made.items():
            if name in named and value.shape == named[name].shape:
                places = tuple((part, stored[part]) for part, _ in parts)
                found[name] = StoredParameter(name, parts=places, join=functools.partial(_part, convert, name))
    missing = [name for name in named if name not in found]
    if missing:
        raise LucidError(f"its checkpoints store {missing[0]} in an unsupported form")
    return found
