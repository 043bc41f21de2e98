"""Three servers on one model and one list of requests: `lucid-deploy serve`, llama.cpp's server, OpenVINO GenAI.

The model is SmolLM2-135M-Instruct in four bits: llama.cpp and OpenVINO GenAI read its GGUF file, `lucid-deploy` exports
its checkpoint, once as it is and once with LUCID in every layer (not trained for that: its answers mean nothing, its
speed does). `lucid:int8` stores the cache in 8 bits, as OpenVINO GenAI does unless told otherwise, `lucid:float16` in
16 bits, as llama.cpp, and `ray:2` is standard attention in two replicas of one core each. Requests are cut from a text,
some after one of two shared system prompts; answers are of fixed length, and greedy unless `--temperature` says
otherwise. Servers take turns: a round measures each at every number of clients once, so ratios are of one run.
llama.cpp and `lucid-deploy` are asked by HTTP; OpenVINO GenAI, which has no server of its own, in its process.

    python benchmarks/serving_peers.py CHECKPOINT MODEL.gguf --text FILE [--genai-python .genai/bin/python]

where `.genai` is an environment with `openvino-genai`, which may not fit beside other packages. llama.cpp
comes compiled with the package `xllamacpp`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import click
import httpx
import numpy as np
from common import write_result
from tokenizers import Tokenizer

SYSTEM_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 64, 200, 64
TOP_P = 0.9  # with a temperature above 0
GENAI = Path(__file__).with_name("serving_peers_genai.py")


@dataclass(frozen=True)
class Asked:
    """One request: a prompt, how many tokens its answer has, and how these are chosen."""

    ids: list[int]
    new: int
    temperature: float = 0.0  # above 0 with top_p 0.9


@dataclass
class Outcome:
    """What a client saw of one answer, in seconds."""

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)  # between tokens


class Server(Protocol):
    """A running server."""

    def load(self, requests: list[Asked], clients: int) -> tuple[list[Outcome], float]:
        """Send all requests, ``clients`` of them at a time; return what was seen, and the seconds in all."""

    @property
    def pid(self) -> int: ...

    def close(self) -> None: ...


class HttpServer:
    """A server process that prints its address, and answers OpenAI's completion requests."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        self._url = self._process.stdout.readline().split()[-1]

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self, requests: list[Asked], clients: int) -> tuple[list[Outcome], float]:
        return asyncio.run(_load(self._url, requests, clients))

    def close(self) -> None:
        self._process.terminate()  # Ray ends its cluster then
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


class GenaiServer:
    """OpenVINO GenAI's continuous batching in a process that takes lists of requests as lines of JSON."""

    def __init__(self, python: str, model: Path) -> None:
        command = [python, str(GENAI), str(model)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdin is not None
        self._lines, self._answers = self._process.stdin, self._process.stdout
        self._answers.readline()

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self, requests: list[Asked], clients: int) -> tuple[list[Outcome], float]:
        self._lines.write(json.dumps({"clients": clients, "requests": [asdict(each) for each in requests]}) + "\n")
        self._lines.flush()
        found = json.loads(self._answers.readline())
        return [Outcome(**each) for each in found["outcomes"]], found["seconds"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait(60)


async def _ask(client: httpx.AsyncClient, asked: Asked) -> Outcome:
    body = {"model": "model", "prompt": asked.ids, "max_tokens": asked.new, "stream": True}
    out, began, tokens = Outcome(), time.perf_counter(), 0
    last = began
    options = {"ignore_eos": True, "stream_options": {"include_usage": True}, "temperature": asked.temperature}
    options |= {"top_p": TOP_P} if asked.temperature else {}
    async with client.stream("POST", "/v1/completions", json={**body, **options}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            piece = json.loads(line[6:])
            tokens = (piece.get("usage") or {}).get("completion_tokens", tokens)
            if not piece["choices"] or not piece["choices"][0]["text"]:
                continue
            now = time.perf_counter()
            if not out.first:
                out.first = now - began
            else:
                out.gaps.append(now - last)
            last = now
    if tokens != asked.new:
        raise SystemExit(f"A server gave {tokens} tokens instead of {asked.new}.")
    return out


async def _load(url: str, requests: list[Asked], clients: int) -> tuple[list[Outcome], float]:
    waiting, out = list(requests)[::-1], []

    async def one(client: httpx.AsyncClient) -> None:
        while waiting:
            out.append(await _ask(client, waiting.pop()))

    each_its_own = httpx.Limits(max_keepalive_connections=0)  # llama.cpp closes connections that were kept
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=each_its_own) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        return out, time.perf_counter() - began


def make_requests(tokenizer: Path, text: Path, count: int, temperature: float = 0.0) -> list[Asked]:
    """Cut prompts of unequal length from a text; half of them begin with one of two shared system prompts."""
    ids = Tokenizer.from_file(str(tokenizer)).encode(text.read_text(), add_special_tokens=False).ids
    draw = random.Random(0)

    def cut(length: int) -> list[int]:
        start = draw.randrange(len(ids) - length)
        return ids[start : start + length]

    systems, out = [cut(SYSTEM_TOKENS), cut(SYSTEM_TOKENS)], []
    for index in range(count):
        length = PROMPT_TOKENS + draw.randrange(-50, 51)
        own = cut(length - SYSTEM_TOKENS if index % 2 else length)
        out.append(Asked([*draw.choice(systems), *own] if index % 2 else own, NEW_TOKENS, temperature))
    return out


def export(checkpoint: Path, target: Path, is_lucid: bool, cache: str) -> None:
    """Export a checkpoint in four bits, with this cache type, unless the target exists."""
    if target.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(shutil.copytree(checkpoint, Path(folder) / "model"))
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | ({"attention_type": "lucid"} if is_lucid else {})))
        words = ["export", str(source), "--output", str(target), "--cache", "static", "--quantize", "int4"]
        words += ["--cache-dtype", cache or "auto"]
        subprocess.run([sys.executable, "-m", "lucid_deploy.cli", *words], check=True)


def serve(artifact: Path, rows: int, more: list[str]) -> HttpServer:
    """Start ``lucid-deploy serve`` with an artifact, on all cores, or on Ray with one core for each replica."""
    words = ["serve", str(artifact), "--rows", str(rows), "--served-model-name", "model", "--quiet", *more]
    words += [] if "ray" in more else ["--port", "0", "--threads", str(os.cpu_count())]
    return HttpServer([sys.executable, "-m", "lucid_deploy.cli", *words])


def llama_cpp(model: Path, rows: int) -> HttpServer:
    """Serve a GGUF file with llama.cpp's own server."""
    code = (
        "import sys, time, os, xllamacpp as x\n"
        "p = x.CommonParams()\n"
        f"p.model.path = {str(model)!r}; p.n_parallel = {rows}; p.n_ctx = {rows * 1024}; p.port = 0\n"
        "p.cpuparams.n_threads = p.cpuparams_batch.n_threads = os.cpu_count()\n"
        "p.port = int(sys.argv[1]); s = x.Server(p)\n"
        "print(s.listening_address, flush=True)\n"
        "time.sleep(1e6)\n"
    )
    return HttpServer([sys.executable, "-c", code, "18431"])


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50 and p95 in milliseconds."""
    return {f"p{q}": round(1e3 * float(np.percentile(values, q)), 1) for q in (50, 95)}


def peak(pid: int) -> int:
    """Return the largest resident memory of a process so far, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("gguf", type=click.Path(exists=True, path_type=Path))
@click.option("--text", type=click.Path(exists=True, path_type=Path), required=True, help="Prompts are cut from it.")
@click.option("--genai-python", help="Python of an environment with openvino-genai; without, GenAI is left out.")
@click.option("--servers", default="lucid,standard,llama.cpp,genai", show_default=True, help="Also lucid:int8, ….")
@click.option("--clients", default="1,4,8,16", show_default=True, help="How many ask at a time.")
@click.option("--requests", default=4, show_default=True, help="Per client, of at least 8; a single one sends 8.")
@click.option("--temperature", default=0.0, show_default=True, help="Above 0, tokens are sampled, with top_p 0.9.")
@click.option("--rounds", default=3, show_default=True, help="How often each takes its turn.")
@click.option("--work", type=click.Path(path_type=Path), help="Keep artifacts here for the next time.")
@click.option("--serve-option", "more", multiple=True, help="An option of `lucid-deploy serve`; may be repeated.")
def main(
    checkpoint: Path,
    gguf: Path,
    text: Path,
    genai_python: str | None,
    servers: str,
    clients: str,
    requests: int,
    temperature: float,
    rounds: int,
    work: Path | None,
    more: tuple[str, ...],
) -> None:
    """Measure."""
    numbers = [int(number) for number in clients.split(",")]
    most = max(numbers)
    count = rounds * requests * sum(max(n, 8) for n in numbers)
    trace = make_requests(checkpoint / "tokenizer.json", text, count, temperature)
    found: dict[tuple[str, int], list[tuple[list[Outcome], float]]] = {}
    with ExitStack() as stack:
        root = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        running: dict[str, Server] = {}
        for name in servers.split(","):
            attention, _, cache = name.partition(":")
            if attention in ("lucid", "standard"):
                export(checkpoint, root / name, attention == "lucid", cache)
                running[name] = serve(root / name, most, list(more))
            elif attention == "ray":
                export(checkpoint, root / "standard", is_lucid=False, cache="")
                ray = ["--engine", "ray", "--replicas", cache, "--replica-cpus", "1", "--port", f"1854{cache}"]
                running[name] = serve(root / "standard", most, [*more, *ray])
            elif name == "llama.cpp":
                running[name] = llama_cpp(gguf, most)
            elif genai_python is not None:
                running[name] = GenaiServer(genai_python, gguf)
            else:
                continue
            stack.callback(running[name].close)
            running[name].load(trace[:4], 4)  # warm
        rest = iter(trace)
        for number in range(rounds):
            for count in numbers:
                asked = [next(rest) for _ in range(requests * max(count, 8) if count > 1 else 8)]
                turns = list(running)
                random.Random(number * 100 + count).shuffle(turns)
                for name in turns:
                    outcomes, seconds = running[name].load(asked, count)
                    found.setdefault((name, count), []).append((outcomes, seconds))
                    rate = NEW_TOKENS * len(asked) / seconds
                    print(f"round {number}: {name}, {count} clients: {rate:.1f} tokens/s", flush=True)
        memory = {name: peak(server.pid) for name, server in running.items()}
    rows = [
        {
            "server": name,
            "clients": count,
            "tokens_per_second": round(statistics.median(NEW_TOKENS * len(each) / s for each, s in runs), 1),
            "first_token_ms": percentiles([one.first for each, _ in runs for one in each]),
            "between_tokens_ms": percentiles([gap for each, _ in runs for one in each for gap in one.gaps]),
        }
        for (name, count), runs in found.items()
    ]
    for row in rows:
        print(row)
    write_result("serving_peers", {"rounds": rounds, "temperature": temperature, "peak_mib": memory, "results": rows})


if __name__ == "__main__":
    main()
