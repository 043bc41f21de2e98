"""Load on `lucid-deploy serve`: continuous batching against one generation after the other, by the same server.

Clients stream greedy answers of fixed length from two servers on one artifact: `--rows 16`, and `--rows 1`, which is
sequential use of the same runtime. Both must give the same texts before anything is reported. Clients run in this
process, on the same processors as the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from common import SHAPES, write_random_checkpoint, write_result
from tokenizers import Tokenizer, models, pre_tokenizers

from lucid_deploy.export import ExportOptions, export

BATCHED, SEQUENTIAL = 16, 1  # rows
WORKLOADS = {"demo": (200, 100, 2), "medium": (128, 32, 2)}  # prompt tokens, new tokens, requests per client
LEAST = 6  # requests


@dataclass
class Outcome:
    """What one client saw of one request; times in seconds."""

    text: str = ""
    whole: float = 0.0
    first: float = 0.0
    gaps: list[float] = field(default_factory=list)


def make_artifact(name: str, root: Path) -> Path:
    """Export a model with a static cache, unless it is there already."""
    target = root / f"{name}-static"
    if not target.exists():
        source: Path | str = "demo"
        if name == "medium":
            source = root / "medium"
            write_random_checkpoint(source, "medium")
            words = {f"w{i}": i for i in range(SHAPES["medium"]["vocab_size"])}
            tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer.save(str(source / "tokenizer.json"))
        export(source, target, ExportOptions(cache="static"))
    return target


class Server:
    """A server process for the length of a block."""

    def __init__(self, artifact: Path, rows: int) -> None:
        words = ["serve", str(artifact), "--port", "0", "--rows", str(rows), "--served-model-name", "model"]
        command = [sys.executable, "-m", "lucid_deploy.cli", *words, "--threads", str(os.cpu_count())]
        self._process = subprocess.Popen(
            [*command, "--log-level", "warning"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()[-1]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)


async def ask(client: httpx.AsyncClient, prompt: list[int], count: int) -> Outcome:
    """Stream one answer."""
    body = {"model": "model", "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True}
    out, began = Outcome(), time.perf_counter()
    last = began
    async with client.stream("POST", "/v1/completions", json={**body, "ignore_eos": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            text = json.loads(line[6:])["choices"][0]["text"]
            now = time.perf_counter()
            if text and not out.text:
                out.first = now - began
            elif text:
                out.gaps.append(now - last)
            last, out.text = now, out.text + text
    out.whole = time.perf_counter() - began
    return out


async def load(url: str, prompts: list[list[int]], count: int, clients: int) -> tuple[list[Outcome], float]:
    """Ask for all prompts, so many at a time; return the outcomes in order and the seconds."""
    waiting = list(enumerate(prompts))[::-1]
    out: dict[int, Outcome] = {}

    async def one(client: httpx.AsyncClient) -> None:
        while waiting:
            index, prompt = waiting.pop()
            out[index] = await ask(client, prompt, count)

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        seconds = time.perf_counter() - began
    return [out[index] for index in range(len(prompts))], seconds


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds."""
    return {f"p{q}": round(1e3 * float(np.percentile(values, q)), 2) for q in (50, 95, 99)}


def measure(name: str, root: Path, concurrencies: list[int]) -> list[dict[str, Any]]:
    """Measure one model at all concurrencies, batched and sequential."""
    artifact = make_artifact(name, root)
    length, count, per_client = WORKLOADS[name]
    draw = random.Random(0)
    vocabulary = 129 if name == "demo" else SHAPES[name]["vocab_size"]
    prompts = [
        [draw.randrange(3, vocabulary) for _ in range(length - draw.randrange(length // 4))]
        for _ in range(max(LEAST, per_client * max(concurrencies)))
    ]
    rows, texts = [], {}
    for mode, size in (("batched", BATCHED), ("sequential", SEQUENTIAL)):
        with Server(artifact, size) as url:
            asyncio.run(load(url, prompts[:2], 8, 1))  # warm
            for clients in concurrencies:
                asked = prompts[: max(LEAST, per_client * clients)]
                outcomes, seconds = asyncio.run(load(url, asked, count, clients))
                texts[mode, clients] = [outcome.text for outcome in outcomes]
                rows.append(
                    {
                        "model": name,
                        "mode": mode,
                        "clients": clients,
                        "requests": len(asked),
                        "requests_per_second": round(len(asked) / seconds, 3),
                        "tokens_per_second": round(len(asked) * count / seconds, 1),
                        "first_token_ms": percentiles([outcome.first for outcome in outcomes]),
                        "between_tokens_ms": percentiles([gap for outcome in outcomes for gap in outcome.gaps]),
                        "whole_ms": percentiles([outcome.whole for outcome in outcomes]),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    for clients in concurrencies:
        if texts["batched", clients] != texts["sequential", clients]:
            sys.exit(f"{name}, {clients} clients: batched answers differ from sequential ones; nothing is reported.")
    return rows


@click.command()
@click.option("--work", type=click.Path(path_type=Path), help="Keep artifacts here for the next time.")
@click.option("--models", default="demo,medium", show_default=True, help="Which models.")
@click.option("--clients", default="1,2,4,8,16", show_default=True, help="How many ask at a time.")
@click.option("--prepare", is_flag=True, help="Only export the models.")
def main(work: Path | None, models: str, clients: str, prepare: bool) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as scratch:
        root = work or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        if prepare:
            for name in models.split(","):
                make_artifact(name, root)
            return
        numbers = [int(number) for number in clients.split(",")]
        rows = [row for name in models.split(",") for row in measure(name, root, numbers)]
    workloads = {name: {"prompt_tokens": f"up to {n}", "new_tokens": m} for name, (n, m, _) in WORKLOADS.items()}
    write_result("serve_load", {"workloads": workloads, "rows": {"batched": BATCHED, "sequential": 1}, "results": rows})


if __name__ == "__main__":
    main()
