"""What one client can learn of another's prompts from stored prefixes: with keys of their own, nothing."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai

from tests.serving.serving_tools import MODEL, PROMPT, Server, Start

SECRET = " ".join([PROMPT.replace("owl has blue", "swan has heavy")] * 3)  # longer than a block of 32 tokens
REUSED = "lucid_prompt_tokens_reused_total"


def write_keys(path: Path, *keys: str) -> Path:
    path.write_text("".join(f"{key}\n" for key in keys))
    path.chmod(0o600)
    return path


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def metric(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", headers=key("alice")).text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))


def reused(server: Server, owner: str, salt: str | None = None) -> int:
    """Send a request; return how many of its prompt's tokens were reused, by the server's counter."""
    before = metric(server, REUSED)
    body = {"model": MODEL, "prompt": SECRET, "max_tokens": 1, "cache_salt": salt}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=key(owner))
    assert answer.status_code == 200, answer.text
    return int(metric(server, REUSED) - before)


def test_prefixes_belong_to_a_key_and_a_salt(start: Start, artifacts: dict[str, Path], tmp_path: Path) -> None:
    server = start(artifacts["static"], "--api-key-file", write_keys(tmp_path / "keys", "alice", "bob"))
    assert reused(server, "alice") == 0
    assert reused(server, "alice") > 10
    assert reused(server, "bob") == 0  # neither in the counter nor, therefore, in the time that it takes
    assert reused(server, "bob") > 10
    assert reused(server, "bob", salt="x") == 0
    assert reused(server, "bob", salt="y") == 0
    assert reused(server, "bob", salt="x") > 10
    assert reused(server, "alice", salt="x") == 0

    prompt, found = ", ".join([PROMPT.partition(".")[0]] * 20), []
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="alice", max_retries=0) as client:
        for salt in ("a", "a", "b"):
            more = {"cache_salt": salt}
            answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1, extra_body=more)
            assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
            found.append(answer.usage.prompt_tokens_details.cached_tokens)
    tokens = answer.usage.prompt_tokens
    assert found == [0, (tokens - 1) // 128 * 128, 0] and tokens > 200  # answers count what was reused


def test_prefixes_are_shared_with_share_prefix_cache(start: Start, artifacts: dict[str, Path], tmp_path: Path) -> None:
    keys = ["--api-key-file", write_keys(tmp_path / "keys", "alice", "bob")]
    server = start(artifacts["static"], "--prefix-cache-tokens", 1000, "--share-prefix-cache", *keys)
    assert reused(server, "alice") == 0
    assert reused(server, "bob") > 10
    assert reused(server, "bob", salt="x") == 0  # a salt still keeps a request to itself
