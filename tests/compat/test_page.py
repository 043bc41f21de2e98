"""The page of a server in a real browser: it types, streams, stops and shows errors."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.compat.browser import Page, browsing, find_browser
from tests.patience import PATIENCE
from tests.serving.serving_tools import PROMPT, Server, Start, artifacts, start  # noqa: F401

pytestmark = pytest.mark.compat
KEY = "a-key-that-nobody-guesses"
# Every error of the page's own, and everything that its policy forbade.
WATCH = """
window.faults = [];
addEventListener("error", (event) => faults.push(String(event.message)));
addEventListener("unhandledrejection", (event) => faults.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => faults.push(event.violatedDirective));
"""


class Visitor:
    """Somebody who looks at a page."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page, self.folder = page, folder
        page.call("Page.enable")
        page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)

    def see(self, code: str) -> Any:
        return self.page.evaluate(code)

    def wait(self, code: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.see(code):
            assert time.monotonic() < end, f"{code}: {self.see('document.body.innerText')}"
            time.sleep(0.05)

    def open(self, url: str, state: str = "ready") -> None:
        self.page.call("Page.navigate", url=f"{url}/")
        self.wait(f"location.href === '{url}/' && document.body?.dataset.state === '{state}'")

    def type(self, where: str, text: str) -> None:
        """Type into a field, key by key as the browser sees it."""
        self.see(f"find({where!r}).focus(); find({where!r}).select?.()")
        self.page.call("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.page.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers
            )

    def click(self, where: str) -> None:
        """Click with the mouse, where people would."""
        self.see(f"find({where!r}).scrollIntoView({{block: 'center'}})")
        box = f"(() => {{ const r = find({where!r}).getBoundingClientRect(); return [r.x, r.y, r.width, r.height] }})()"
        left, top, width, height = self.see(box)
        x, y = left + width / 2, top + height / 2
        for kind in ("mousePressed", "mouseReleased"):
            self.page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def text(self, where: str) -> str:
        return str(self.see(f"find({where!r}).textContent"))

    def picture(self, name: str) -> Path:
        """Take a screenshot of the whole page."""
        data = self.page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        file = self.folder / f"{name}.png"
        file.write_bytes(base64.b64decode(data))
        return file


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    browser = find_browser()
    if browser is None:
        pytest.skip("not run: chromium is missing; Debian's package is chromium")
    folder = tmp_path_factory.mktemp("page")
    with browsing(browser, folder / "profile") as page:
        yield Visitor(page, folder)


@pytest.fixture(autouse=True)
def _no_faults(visitor: Visitor) -> Iterator[None]:
    yield
    assert visitor.see("window.faults") == []


def answers(visitor: Visitor) -> list[str]:
    found: list[str] = visitor.see("[...document.querySelectorAll('.turn')].map((turn) => turn.lastChild.textContent)")
    return found


def test_a_chat_and_its_probabilities(visitor: Visitor, start: Start, artifacts: dict[str, Path]) -> None:  # noqa: F811
    visitor.open(start(artifacts["growing"]).url)
    assert "demo, context of 512 tokens" in visitor.text("model")
    assert visitor.see("document.body.dataset.mode") == "chat"
    visitor.type("prompt", PROMPT)
    visitor.press("Enter", 13, modifiers=2)  # Ctrl+Enter
    visitor.wait("document.body.dataset.state === 'ready' && document.querySelectorAll('.turn').length === 2")
    visitor.type("prompt", ". bear has")
    visitor.click("send")
    visitor.wait("document.body.dataset.state === 'ready' && document.querySelectorAll('.turn').length === 4")
    assert answers(visitor) == [PROMPT, "blue cup", ". bear has", "green key"]
    assert visitor.text("rate").startswith("2 tokens, first after ")
    assert visitor.text("status") == "The answer is complete."
    visitor.see("find('conversation').focus()")
    for word in ("blue", "cup", "green"):
        visitor.press("ArrowRight", 39)
        assert visitor.text("token-info").startswith(f"“{word}” ")
    place = visitor.see(
        "(() => { const r = document.querySelector('.token').getBoundingClientRect(); return [r.x + 3, r.y + 3] })()"
    )
    visitor.page.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    visitor.wait("find('token-info').textContent.startsWith('“blue” ')")
    assert "; alternatives: “" in visitor.text("token-info")


def test_a_stream_is_stopped(visitor: Visitor, start: Start, artifacts: dict[str, Path]) -> None:  # noqa: F811
    running = start(artifacts["growing"], slow=0.2)
    visitor.open(running.url)
    visitor.type("prompt", PROMPT)
    visitor.click("send")
    visitor.wait("document.querySelectorAll('.token').length")
    visitor.click("clear")
    visitor.wait("document.body.dataset.state === 'ready'")
    assert visitor.see("messages") == answers(visitor) == []  # the next request has what the page shows
    visitor.click("mode-completion")
    visitor.see("find('temperature').value = '2'; find('settings').open = true")
    visitor.type("seed", "7")
    visitor.type("prompt", PROMPT)
    visitor.click("send")
    visitor.wait("document.querySelectorAll('.token').length >= 2")  # some, while others are still to come
    assert visitor.see("document.body.dataset.state") == "busy"
    assert visitor.see("find('send').disabled && !find('stop').disabled")
    visitor.click("stop")
    visitor.wait("document.body.dataset.state === 'ready'")
    assert visitor.text("status") == "Stopped."
    running.hurry()
    gauges = httpx.get(f"{running.url}/metrics").text
    end = time.monotonic() + PATIENCE
    while "lucid_active_rows 0.0" not in gauges:  # the server heard of it
        assert time.monotonic() < end, gauges
        time.sleep(0.05)
        gauges = httpx.get(f"{running.url}/metrics").text
    visitor.see("find('temperature').value = '0'")
    visitor.click("send")
    visitor.wait("document.body.dataset.state === 'ready' && find('status').textContent.includes('complete')")
    assert answers(visitor) == [PROMPT, "blue cup"]


def test_errors_are_said_and_the_text_is_kept(visitor: Visitor, start: Start, artifacts: dict[str, Path]) -> None:  # noqa: F811
    running = start(artifacts["growing"], "--max-new-tokens", 50)
    visitor.open(running.url)
    visitor.type("prompt", PROMPT)
    visitor.click("send")
    visitor.wait("!find('error').hidden")
    assert visitor.text("error") == "max_completion_tokens must be 1 to 50, not 128."
    assert (answers(visitor), visitor.see("find('prompt').value")) == ([], PROMPT)
    visitor.see("find('max-tokens').value = '20'")
    visitor.click("send")
    visitor.wait("document.body.dataset.state === 'ready' && document.querySelectorAll('.turn').length === 2")
    assert visitor.see("find('error').hidden")
    running.stop()
    visitor.type("prompt", PROMPT)
    visitor.click("send")
    visitor.wait("!find('error').hidden")
    assert visitor.text("error") == "The server does not answer. Is it still running?"


def test_a_model_without_a_template_completes(visitor: Visitor, start: Start, artifacts: dict[str, Path]) -> None:  # noqa: F811
    visitor.open(start(artifacts["plain"]).url)
    assert visitor.see("document.body.dataset.mode") == "completion"
    assert visitor.see("find('mode-chat').disabled && !find('no-chat').hidden")
    visitor.type("prompt", PROMPT)
    visitor.click("send")
    visitor.wait("document.body.dataset.state === 'ready' && document.querySelectorAll('.turn').length === 2")
    assert answers(visitor) == [PROMPT, "blue cup"]


def test_a_server_with_keys(visitor: Visitor, start: Start, artifacts: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    visitor.open(start(artifacts["growing"], "--api-key-file", keys).url, state="failed")
    assert "The API key is missing or wrong" in visitor.text("error")
    assert visitor.see("!find('key-form').hidden")
    visitor.type("key", KEY)
    visitor.press("Enter", 13)
    visitor.see("find('key-form').requestSubmit()")
    visitor.wait("document.body.dataset.state === 'ready'")
    assert visitor.see("find('key').value + JSON.stringify(localStorage) + document.cookie") == "{}"
    visitor.type("prompt", PROMPT)
    visitor.click("send")
    visitor.wait("document.body.dataset.state === 'ready' && document.querySelectorAll('.turn').length === 2")
    assert answers(visitor)[1] == "blue cup"


def test_markup_is_shown_as_text(visitor: Visitor, start: Start, artifacts: dict[str, Path]) -> None:  # noqa: F811
    markup = "<b id=bold>owl</b><img src=x onerror='faults.push(1)'><script>faults.push(2)</script>"
    visitor.open(start(artifacts["growing"]).url)
    visitor.type("prompt", markup)
    visitor.click("send")
    visitor.wait("document.body.dataset.state === 'ready' && document.querySelectorAll('.turn').length === 2")
    assert answers(visitor)[0] == markup
    event = {"choices": [{"text": markup, "logprobs": None}]}  # a model may write it
    answer = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n"
    visitor.see(f"window.fetch = async () => new Response({json.dumps(answer)})")
    visitor.click("mode-completion")
    visitor.type("prompt", "owl")
    visitor.click("send")
    visitor.wait("document.body.dataset.state === 'ready' && document.querySelectorAll('.turn').length === 2")
    assert answers(visitor) == ["owl", markup]
    assert visitor.see("document.querySelector('#bold, #conversation img, #conversation script')") is None


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1000, "light"), (1000, "dark")])
def test_pages_fit_the_window_and_have_contrast(
    visitor: Visitor,
    start: Start,  # noqa: F811
    artifacts: dict[str, Path],  # noqa: F811
    width: int,
    scheme: str,
) -> None:
    """Nothing is wider than the window, and text has a contrast of 4.5 to 1 at least."""
    page = visitor.page
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    url = start(artifacts["growing"]).url
    visitor.open(url)
    visitor.see("find('settings').open = true")
    assert visitor.picture(f"{width}-{scheme}").stat().st_size > 10_000
    assert visitor.see("document.documentElement.scrollWidth") <= width
    ratios = visitor.see(CONTRASTS)
    assert len(ratios) > 10 and min(ratios.values()) >= 4.5, json.dumps(ratios)
    unlabelled = (
        "[...document.querySelectorAll('input, select, textarea')].filter((each) => !each.labels.length).length"
    )
    assert visitor.see(unlabelled) == 0
    page.call("Page.navigate", url=f"{url}/docs")
    visitor.wait("location.pathname === '/docs' && document.readyState === 'complete'")
    assert visitor.see("document.documentElement.scrollWidth") <= width


CONTRASTS = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const found = parse(getComputedStyle(node).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const out = {};
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.disabled || !node.checkVisibility()) continue;
    const [a, b] = [parse(getComputedStyle(node).color), back(node)].map(light);
    out[`${node.tagName} ${node.textContent.slice(0, 20)}`] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return out;
})()"""
