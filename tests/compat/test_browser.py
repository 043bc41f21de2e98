"""The example for browsers, in a real one: the answer it streams is that of Python's onnxruntime."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lucid_deploy as ld
from lucid_deploy.artifact import Artifact
from tests.compat.browser import WEBGPU, Page, browsing, find_browser, serving
from tests.compat.environments import node_packages

pytestmark = pytest.mark.compat

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"
FACTS = "fox has red lamp, owl has blue cup, bear has green key, cat has old map, swan has heavy bell. "
# Resolves when the page has done what it is doing, with its state and the texts it shows.
SETTLED = """new Promise((settled) => {
  const look = () => {
    const state = document.body.dataset.state;
    if (["ready", "done", "failed"].includes(state)) {
      settled({ state, status: document.getElementById("status").textContent, seen: window.seen ?? [] });
    } else setTimeout(look, 50);
  };
  look();
})"""
WATCH = """(() => {
  window.seen = [];
  const answer = document.getElementById("answer");
  window.watching?.disconnect();
  window.watching = new MutationObserver(() => window.seen.push(answer.textContent));
  window.watching.observe(answer, { childList: true });
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[tuple[Page, Path, str]]:
    """Yield a browser's page, the folder that is served, and its URL; the parameter WEBGPU gives a software GPU."""
    browser = find_browser()
    if browser is None or not shutil.which("npm"):
        pytest.skip(f"not run: {'npm' if browser else 'chromium'} is missing; Debian's packages are chromium and npm")
    root = tmp_path_factory.mktemp("browser")
    folder = Path(shutil.copytree(EXAMPLE, root / "site", ignore=shutil.ignore_patterns("node_modules", "artifact")))
    (folder / "node_modules").symlink_to(node_packages(EXAMPLE / "package.json") / "node_modules")
    with serving(folder) as url, browsing(browser, root / "profile", *getattr(request, "param", ())) as opened:
        yield opened, folder, url


def open_page(page: tuple[Page, Path, str], artifact: Path) -> dict[str, Any]:
    """Open the example with an artifact; return what it says when it has loaded it."""
    opened, folder, url = page
    name = f"{artifact.parent.name}-{artifact.name}"  # one of its own: a browser keeps what it has loaded by that name
    if artifact.is_dir():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(artifact)
    opened.call("Page.navigate", url=f"{url}index.html?artifact={name}")
    arrived = f"""new Promise((there) => {{
      const look = () => location.href.startsWith({url!r}) && document.body ? there(true) : setTimeout(look, 50);
      look();
    }})"""
    assert opened.evaluate(arrived)
    found: dict[str, Any] = opened.evaluate(SETTLED)
    return found


def ask(page: tuple[Page, Path, str], prompt: str, count: int) -> dict[str, Any]:
    """Ask for an answer; return the page's state, its line, and each text that it showed."""
    opened = page[0]
    opened.evaluate(WATCH)
    opened.evaluate(f"document.getElementById('prompt').value = {prompt!r}")
    opened.evaluate(f"document.getElementById('count').value = {count}")
    opened.evaluate("document.body.dataset.state = 'asked'; document.getElementById('go').click()")
    found: dict[str, Any] = opened.evaluate(SETTLED)
    return found


@pytest.mark.parametrize("page", [(WEBGPU,)], ids=["webgpu"], indirect=True)
def test_prefill_and_decode_run_on_webgpu(page: tuple[Page, Path, str], demo: Callable[..., Artifact]) -> None:
    artifact = demo(logits="last").directory
    assert open_page(page, artifact)["status"] == "Ready: 3 layers, float32, WebGPU."
    with ld.open(artifact) as model:
        for prompt, count in ((f"{FACTS * 2}owl has", 8), ("fox has red", 8)):  # 50 tokens: two blocks of the solve
            found = ask(page, prompt, count)
            assert found["state"] == "done" and found["status"].endswith("; WebGPU."), found
            assert found["seen"][-1].strip() == model.generate(prompt, max_new_tokens=count).text.strip()


def test_the_answer_is_that_of_onnxruntime(page: tuple[Page, Path, str], demo: Callable[..., Artifact]) -> None:
    artifact = demo(logits="last").directory
    loaded = open_page(page, artifact)
    assert loaded["state"] == "ready", loaded
    assert loaded["status"] == "Ready: 3 layers, float32, WASM."
    with ld.open(artifact) as model:
        for prompt, count in ((f"{FACTS}owl has", 8), (f"{FACTS}swan has", 8), ("fox has red", 40)):
            wanted = model.generate(prompt, max_new_tokens=count)
            found = ask(page, prompt, count)
            assert found["state"] == "done", found
            texts = [text for text in found["seen"] if text]
            assert texts[-1].strip() == wanted.text.strip()
            tokens = len(wanted.ids)
            assert len(texts) == tokens > 1, "a text for each token, without that of the end"
            assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
            line = rf"{tokens} tokens, \d+\.\d tokens per second; the first after \d+ ms; WASM\."
            assert re.match(line, found["status"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_byte_level_tokenizer_gives_the_answer_of_onnxruntime(
    page: tuple[Page, Path, str], with_byte_level_tokenizer: Callable[..., Any], dtype: str
) -> None:
    artifact = with_byte_level_tokenizer(dtype)[1].directory
    assert open_page(page, artifact)["status"] == f"Ready: 2 layers, {dtype}, WASM."
    prompt = "Die Schlüssel ähneln sich; fox has red lamp"
    with ld.open(artifact) as model:
        wanted = model.generate(prompt, max_new_tokens=25)
    found = ask(page, prompt, 25)
    assert found["state"] == "done" and len(found["seen"]) >= len(wanted.ids) == 25, found
    assert found["seen"][-1] == wanted.text


def test_what_cannot_be_loaded_is_said_in_a_line(page: tuple[Page, Path, str], exported: Any, tmp_path: Path) -> None:
    static = open_page(page, exported(cache="static")[1].directory)
    assert (static["state"], static["status"]) == (
        "failed",
        "The artifact has a static cache. Export with --cache growing.",
    )
    missing = open_page(page, tmp_path / "nowhere")
    assert missing["state"] == "failed" and re.search(r"nowhere/lucid.json cannot be loaded: 404", missing["status"])


def test_a_prompt_that_is_too_long_is_said_in_a_line(
    page: tuple[Page, Path, str], demo: Callable[..., Artifact]
) -> None:
    open_page(page, demo(logits="last").directory)
    found = ask(page, "fox has red lamp. " * 110, 4)
    assert found["state"] == "failed" and re.search(r"The prompt has 551 tokens; the model takes 511", found["status"])
