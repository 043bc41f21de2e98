"""A class of transformers as a family: where its parameters lie in a checkpoint."""

from __future__ import annotations

import torch

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.families import Family, StoredParameter
from lucid_deploy.model.transformers_class.module import ClassModel


class ClassFamily(Family):
    """The names of the parameters of a class of transformers."""

    def __init__(self, config: LucidConfig) -> None:
        with torch.device("meta"):
            model = ClassModel(config)
        self._sources, self.unused_tensors = model.sources, model.unused_tensors  # type: ignore[misc]

    def stored(self, name: str, config: LucidConfig) -> StoredParameter:
        return self._sources[name].stored
