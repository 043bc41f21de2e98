"""Download checkpoints from the Hugging Face Hub.

huggingface_hub downloads into its own cache, which is shared with other programs, and provides token and cache folder
unless these are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.build import parse_model_config
from lucid_deploy.model.checkpoint import DEMO, take_own_code
from lucid_deploy.model.config_file import read_config
from lucid_deploy.model.packed.read import MODELOPT_FILE, OLDER_FILE, split_layout
from lucid_deploy.model.tensor_files import ADAPTER, INDEX, SINGLE, adapter_error
from lucid_deploy.model.tokenizer_files import TEMPLATE_FOLDER, TOKENIZER_FILES

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_SHARDS = "model-*-of-*.safetensors"
_SETTINGS = ("config.json", OLDER_FILE, MODELOPT_FILE)  # read before any weights are downloaded
_FILES = (*_SETTINGS, SINGLE, INDEX, _SHARDS, *TOKENIZER_FILES, f"{TEMPLATE_FOLDER}/*.jinja")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HubOptions:
    """How to reach a checkpoint of the Hub."""

    revision: str | None = None  # branch, tag or commit; None: main
    # for private and gated models; None: the one that huggingface_hub is logged in with, if any
    token: str | None = None
    cache: Path | None = None  # directory of downloads; None: huggingface_hub's own
    offline: bool = False  # use the cache only, without network access
    # address of the Hub; None: huggingface_hub's default. The user's token is not sent to other addresses.
    endpoint: str | None = None


def is_on_hub(checkpoint: str | Path, options: HubOptions) -> bool:
    """Return whether to download a checkpoint: its name is ``org/name``, and no local path has that name.

    A missing directory inside an existing one counts as a mistyped path, unless options for the Hub are given.
    """
    name = str(checkpoint)
    here = name == DEMO or Path(name).exists()
    if not here and _NAME.fullmatch(name) and (options != HubOptions() or not Path(name).parent.exists()):
        return True
    if options != HubOptions():
        what = "is on this machine" if here else "is not a name of a model there, such as org/name"
        raise LucidError(f"The options for the Hugging Face Hub are not for {name}, which {what}. Leave them out.")
    return False


def fetch(
    name: str, options: HubOptions, assume_unused: Collection[str] = (), progress: Progress | None = None
) -> tuple[Path, dict[str, str]]:
    """Download ``config.json``, tokenizer and safetensors of a checkpoint, nothing else.

    The configuration, including quantization settings, is downloaded and checked before any weights.

    Returns:
        The directory in the cache, and repository, revision and commit for the manifest.
    """
    from huggingface_hub import HfApi, hf_hub_download

    revision = options.revision or "main"
    with _translate_errors(name, options), _quiet():
        if options.offline:
            directory = Path(
                hf_hub_download(name, "config.json", revision=revision, cache_dir=options.cache, local_files_only=True)
            ).parent
            return directory, {"repository": name, "revision": revision, "commit": directory.name}
        info = HfApi(options.endpoint, token=_token(options)).model_info(name, revision=revision)
        _check_files({item.rfilename for item in info.siblings or []}, f"{name} at {revision}")
        _check_settings(_download(name, _SETTINGS, options, progress), assume_unused)
        directory = _download(name, _FILES, options, progress)
    if directory.name != info.sha:
        raise LucidError(f"{name} changed at {revision} while it was downloaded. Run the command again.")
    return directory, {"repository": name, "revision": revision, "commit": directory.name}


def _check_settings(directory: Path, assume_unused: Collection[str]) -> None:
    raw, _ = split_layout(read_config(directory), directory)
    if raw.get("auto_map"):
        take_own_code(raw, directory, trusted=False)
    parse_model_config(raw, str(directory / "config.json"), assume_unused)


def _download(name: str, patterns: Iterable[str], options: HubOptions, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name,
            revision=options.revision or "main",
            cache_dir=options.cache,
            allow_patterns=list(patterns),
            token=_token(options),
            endpoint=options.endpoint,
            tqdm_class=_bar(name, progress),
        )
    )


def _token(options: HubOptions) -> str | bool | None:
    """Return the token to send; one that was stored for the Hub is not sent to another endpoint."""
    if options.token is None and options.endpoint is not None:
        return False
    return options.token


def _check_files(files: set[str], where: str) -> None:
    """Refuse a repository without a checkpoint before anything is downloaded."""
    if ADAPTER in files:
        raise LucidError(adapter_error(f"{where} on the Hub"))
    if "config.json" not in files:
        raise LucidError(f"{where} has no config.json on the Hub: it is not a checkpoint.")
    shards = sorted(file for file in files if fnmatch(file, _SHARDS))
    if SINGLE in files and shards:
        raise LucidError(
            f"{where} has {SINGLE} and shards, {shards[0]} and so on, on the Hub. transformers reads the first and "
            "other programs the shards, which may be another model. Download it, remove one of them, and export the "
            "folder."
        )
    if not files & {SINGLE, INDEX}:
        weights = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth", ".gguf", ".safetensors")))
        beside = f" It has {', '.join(weights[:5])}." if weights else ""
        raise LucidError(f"{where} has neither {SINGLE} nor {INDEX} on the Hub.{beside}")


@contextmanager
def _translate_errors(name: str, options: HubOptions) -> Iterator[None]:
    """Convert errors of huggingface_hub, whose messages have many lines, into one line with a remedy."""
    from huggingface_hub import constants, errors

    hub, revision = options.endpoint or constants.ENDPOINT, options.revision or "main"
    login = "Log in with: hf auth login; or give a token with --token-file."
    try:
        yield
    except errors.GatedRepoError as error:
        raise LucidError(f"{name} is gated on {hub}: accept its terms there. {login}") from error
    except errors.RepositoryNotFoundError as error:
        raise LucidError(
            f"{hub} has no model {name}, or it is private and the token may not read it. Check the name; no directory "
            f"of this machine has it. {login}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise LucidError(f"{name} has no revision {revision} on {hub}.") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = login if status in (401, 403) else "Try again later."
        raise LucidError(f"{hub} answered {status} when it was asked for {name}. {remedy}") from error
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:  # connections, cut files, a full disk
        if options.offline and isinstance(error, errors.LocalEntryNotFoundError):
            raise LucidError(
                f"{name} at revision {revision} was not downloaded before. Run the command without --offline where "
                "there is a network, or name the cache that it is in with --hub-cache."
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise LucidError(
            f"{name} could not be downloaded from {hub}: {reason}. Check the network and run the command again, which "
            "continues where it broke off; --offline uses what was downloaded before."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence huggingface_hub's warnings about retries; a failed last attempt raises an error."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _bar(name: str, progress: Progress | None) -> type:
    """Return a class of progress bars that print nothing and report bytes."""
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
