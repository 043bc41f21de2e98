"""Download checkpoints from the Hugging Face Hub.

Cache, token, endpoint and offline use are huggingface_hub's own settings: HF_HUB_CACHE, HF_TOKEN or ``hf auth login``,
HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError, in_one_line
from lucid_deploy.model.build import parse_model_config
from lucid_deploy.model.checkpoint import DEMO, take_own_code
from lucid_deploy.model.config_file import read_config
from lucid_deploy.model.packed.read import MODELOPT_FILE, split_layout
from lucid_deploy.model.tensor_files import ADAPTER, INDEX, SINGLE, refuse_adapter
from lucid_deploy.model.tokenizer_files import TEMPLATE_FOLDER, TOKENIZER_FILES

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_SETTINGS = ("config.json", ADAPTER, MODELOPT_FILE)  # read before any weights are downloaded
_FILES = (*_SETTINGS, SINGLE, INDEX, "model*-of-*.safetensors", *TOKENIZER_FILES, f"{TEMPLATE_FOLDER}/*.jinja")

Progress = Callable[[str, int, int], None]  # label, bytes downloaded, bytes in total


def is_on_hub(checkpoint: str | Path, revision: str | None) -> bool:
    """Return whether to download a checkpoint: its name is ``org/name``, and no such local path exists.

    If the parent directory exists, the name is taken for a mistyped path unless a revision is given. A revision with
    anything but a Hub name raises a LucidError.
    """
    name = str(checkpoint)
    here = name == DEMO or Path(name).exists()
    if not here and _NAME.fullmatch(name) and (revision is not None or not Path(name).parent.exists()):
        return True
    if revision is not None:
        raise LucidError(f"--revision is for a model of the Hugging Face Hub, org/name, which {name} is not.")
    return False


def fetch(
    name: str, revision: str | None = None, assume_unused: Collection[str] = (), progress: Progress | None = None
) -> tuple[Path, dict[str, str | None]]:
    """Download only the configuration files, the tokenizer and the safetensors of a checkpoint.

    The configuration, including quantization settings, is checked before any weights are downloaded.

    Returns:
        The directory in the local Hub cache; and the repository, revision and commit for the manifest.
    """
    revision = revision or "main"
    directory = _download(name, _SETTINGS, revision, progress)
    _check_settings(directory, assume_unused)
    commit = directory.name
    return _download(name, _FILES, commit, progress), {"repository": name, "revision": revision, "commit": commit}


def _check_settings(directory: Path, assume_unused: Collection[str]) -> None:
    refuse_adapter(directory)
    raw, _ = split_layout(read_config(directory), directory)
    if raw.get("auto_map"):
        take_own_code(raw, directory, trusted=False)
    parse_model_config(raw, str(directory / "config.json"), assume_unused)


def _download(name: str, patterns: Iterable[str], revision: str, progress: Progress | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(patterns), tqdm_class=_bar(name, progress))
        )
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:  # OSError: connection errors, a full disk
        raise LucidError(f"{name} at {revision} could not be downloaded: {in_one_line(error)}") from error


def _bar(name: str, progress: Progress | None) -> type:
    """Return a tqdm class that prints nothing and reports downloaded bytes to ``progress``."""
    from tqdm.auto import tqdm

    class DownloadProgress(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.counts_bytes = options.get("unit") == "B"
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if progress is not None and self.counts_bytes and self.total:
                progress(f"Downloading {name}", int(self.n), int(self.total))

    return DownloadProgress
