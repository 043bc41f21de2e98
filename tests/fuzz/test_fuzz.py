"""Files and bodies from strangers: each is read, or refused with one line, and never a traceback.

``make test`` runs a few fixed examples of each, and the corpus: files that once went wrong. ``make fuzz`` runs many
random ones; what it finds belongs into the corpus, as ``corpus/KIND-what-it-is``.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lucid_deploy.artifact.manifest import read_manifest
from lucid_deploy.batching.answer_file import AnswerFile
from lucid_deploy.batching.prompt_file import PromptDefaults, read_prompts
from lucid_deploy.conformance.case_files import DATA, read_case, write_case
from lucid_deploy.conformance.cases import make_case
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.json_fields import decode
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.config_file import read_config
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.serving.fields import ChatRequest, CompletionRequest, ResponseRequest
from tests.conftest import TINY

CORPUS = Path(__file__).with_name("corpus")
LONG = int(os.environ.get("LUCID_FUZZ_EXAMPLES", "0"))  # make fuzz sets it
LONGEST = 3000  # characters of a line: one that names every tensor that is missing
fuzzed = settings(
    max_examples=LONG or 20,
    derandomize=not LONG,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
Reader = Callable[[Path], object]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, -(2**63), 10**400])
    | st.floats()
    | st.text(max_size=12)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def mutated(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A good object in JSON with a few values replaced, keys added and taken away, and at times bytes changed."""
    changes = st.dictionaries(st.sampled_from(sorted(good)) | st.text(max_size=8), values, max_size=3)
    gone = st.sets(st.sampled_from(sorted(good)), max_size=2)

    def build(changed: dict[str, Any], left_out: set[str], cut: int) -> bytes:
        data = {key: value for key, value in {**good, **changed}.items() if key not in left_out}
        text = json.dumps(data).encode("utf-8", "replace")
        return text[:cut] if cut < len(text) else text

    return st.builds(build, changes, gone, st.integers(0, 200) | st.just(10**9))


def is_refused_or_read(read: Callable[[], object]) -> None:
    try:
        read()
    except LucidError as error:
        first, *more = str(error).splitlines()
        assert not more or first.endswith("so none was run."), first  # which names each of them
        assert all(len(line) < LONGEST for line in (first, *more[:20])), max((first, *more), key=len)[:LONGEST]


def on_disk(content: bytes, name: str, read: Reader) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        is_refused_or_read(lambda: read(path))


def prompts(path: Path) -> object:
    return read_prompts(path, PromptDefaults(8, Sampling(), (), True))


def configuration(path: Path) -> object:
    return parse_config(read_config(path.parent), str(path))


def weights(path: Path) -> object:
    (path.parent / "config.json").write_text(json.dumps(TINY))
    return Checkpoint(path.parent)


@functools.cache
def good_case() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    write_case(folder, make_case("scatter_row_buffer"))
    return folder / "scatter_row_buffer"


def case(path: Path) -> object:
    """A case of conformance with one file in the place of the good one; all others are good."""
    folder = path.parent / "case"
    shutil.copytree(good_case(), folder)
    shutil.copyfile(path, folder / (DATA if path.name.endswith(".pb") else "") / path.name)
    return read_case(folder)


def answers(path: Path) -> None:
    path.with_name(f"{path.name}.run.json").write_text("{}")
    AnswerFile(path, {}, {1, 2}).close()


def record(path: Path) -> None:
    path.with_name("answers.jsonl").write_text('{"line": 1}\n')
    AnswerFile(path.with_name("answers.jsonl"), {}, {1, 2}).close()


def body(form: type[Any]) -> Reader:
    return lambda path: decode(path.read_bytes(), form, "body")


READERS: dict[str, tuple[str, Reader]] = {
    "manifest": ("lucid.json", lambda path: read_manifest(path.parent)),
    "config": ("config.json", configuration),
    "prompts": ("prompts.jsonl", prompts),
    "completion": ("body", body(CompletionRequest)),
    "chat": ("body", body(ChatRequest)),
    "weights": ("model.safetensors", weights),
    "case": ("case.json", case),
    "casemodel": ("model.onnx", case),
    "casetensor": ("input_0.pb", case),
    "answers": ("answers.jsonl", answers),
    "record": ("answers.jsonl.run.json", record),
}


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus_is_read_or_refused(path: Path) -> None:
    name, read = READERS[path.name.partition("-")[0]]
    on_disk(path.read_bytes(), name, read)


@pytest.mark.parametrize("kind", READERS)
def test_any_bytes_are_read_or_refused(kind: str) -> None:
    name, read = READERS[kind]

    @fuzzed
    @given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
    def check(content: bytes) -> None:
        on_disk(content, name, read)

    check()


@fuzzed
@given(mutated(TINY))
def test_a_changed_configuration_is_read_or_refused(content: bytes) -> None:
    on_disk(content, "config.json", configuration)


def test_a_changed_manifest_is_read_or_refused(exported: Any) -> None:
    good = json.loads((exported()[1].directory / "lucid.json").read_text())

    @fuzzed
    @given(st.sampled_from(["", "config", "files", "graphs"]), st.data())
    def check(part: str, data: st.DataObject) -> None:
        inner = json.loads(data.draw(mutated(good[part] if part else good).filter(is_json)))
        whole = {**good, part: inner} if part else inner
        on_disk(json.dumps(whole).encode("utf-8", "replace"), "lucid.json", READERS["manifest"][1])

    check()


def is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


@fuzzed
@given(st.lists(mutated({"prompt_ids": [1, 2], "id": "a", "temperature": 0.5, "stop": ["."]}), max_size=4))
def test_changed_lines_of_prompts_are_read_or_refused(lines: list[bytes]) -> None:
    on_disk(b"\n".join(lines), "prompts.jsonl", prompts)


@fuzzed
@given(st.lists(mutated({"line": 1, "id": None, "text": "a", "error": None}), max_size=4))
def test_changed_lines_of_answers_are_read_or_refused(lines: list[bytes]) -> None:
    on_disk(b"\n".join(lines), "answers.jsonl", answers)


@fuzzed
@given(mutated({"model": "m", "prompt": "a", "max_tokens": 5, "stop": ["x"], "stream": False}))
def test_changed_bodies_of_completions_are_read_or_refused(content: bytes) -> None:
    on_disk(content, "body", body(CompletionRequest))


@fuzzed
@given(mutated({"model": "m", "messages": [{"role": "user", "content": "a"}], "top_p": 0.5}))
def test_changed_bodies_of_chats_are_read_or_refused(content: bytes) -> None:
    on_disk(content, "body", body(ChatRequest))


@fuzzed
@given(mutated({"model": "m", "input": [{"role": "user", "content": "a"}], "text": {"format": {"type": "text"}}}))
def test_changed_bodies_of_responses_are_read_or_refused(content: bytes) -> None:
    on_disk(content, "body", body(ResponseRequest))


HEADER = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [97, 64], "data_offsets": [0, 24832]}}


@fuzzed
@given(
    mutated(HEADER) | mutated(HEADER["model.embed_tokens.weight"]).map(lambda text: b'{"x": ' + text + b"}"),
    st.integers(-9, 9),
)
@example(json.dumps({"x": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 8]}}).encode(), 0)
def test_changed_headers_of_safetensors_are_read_or_refused(header: bytes, off: int) -> None:
    on_disk(struct.pack("<Q", max(0, len(header) + off)) + header + bytes(64), "model.safetensors", weights)


def test_a_changed_conformance_case_is_read_or_refused() -> None:
    good = json.loads((good_case() / "case.json").read_text())

    @fuzzed
    @given(mutated(good))
    def check(content: bytes) -> None:
        on_disk(content, "case.json", case)

    check()


@pytest.mark.parametrize("name", ["model.onnx", f"{DATA}/input_1.pb", f"{DATA}/output_0.pb"])
def test_changed_files_of_a_conformance_case_are_read_or_refused(name: str) -> None:
    good = (good_case() / name).read_bytes()

    @fuzzed
    @given(st.integers(0, len(good)), st.binary(min_size=0, max_size=4), st.booleans())
    def check(place: int, put: bytes, cut: bool) -> None:
        content = good[:place] + put + (b"" if cut else good[place + len(put) :])
        on_disk(content, Path(name).name, case)

    check()
