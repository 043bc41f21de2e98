"""Load on `lucid-deploy serve`: continuous batching against one generation after the other, by the same server.

Clients stream greedy answers of fixed length from two servers on one artifact: `--rows 16`, and `--rows 1`, which is
sequential use of the same runtime. Both run all the time and take turns: a round measures every server at every number
of clients once, in an order of its own, and ratios are those of one round. All must give the same texts before anything
is reported. Clients run in this process, on the same processors as the server; the processor time of both is reported,
and that of all other processes, which should be next to nothing. Needs Linux.

With `--audit SHARE` a third way takes its turns: the batched server, of whose answers that share, chosen at random,
comes with token ids and log-probabilities. After each of its turns these are computed again, alone, by
`audit.py`, and so are sampled answers to one prompt, which are not timed.
A wrong answer ends the run, and nothing is reported.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
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
from audit import REPEATS, ServedAnswer, audit, repeated
from common import SHAPES, write_random_checkpoint, write_result
from tokenizers import Tokenizer, models, pre_tokenizers

from lucid_deploy.export import ExportOptions, export
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.serving.engine import EngineOptions

ROWS = {"batched": 16, "sequential": 1}
WORKLOADS = {"demo": (200, 100, 4), "medium": (128, 32, 1)}  # prompt tokens, new tokens, requests per client
LEAST = 4  # with fewer clients, as many requests as this number of clients would send


@dataclass(frozen=True)
class Prompt:
    """The prompt of one request, to be continued greedily or, if not ``greedy``, by tokens drawn without a seed."""

    ids: list[int]
    greedy: bool = True
    audited: bool = False


@dataclass
class Outcome:
    """What one client saw of one request; times in seconds."""

    text: str = ""
    whole: float = 0.0
    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: str = ""


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
    """A process of ``lucid-deploy serve`` that runs during a ``with`` block."""

    def __init__(self, artifact: Path, rows: int) -> None:
        words = ["serve", str(artifact), "--port", "0", "--rows", str(rows), "--served-model-name", "model"]
        command = [sys.executable, "-m", "lucid_deploy.cli", *words, "--threads", str(os.cpu_count())]
        self._process = subprocess.Popen(
            [*command, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.url = ""

    def __enter__(self) -> Server:
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split()[-1]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)

    def cpu_seconds(self) -> float:
        """Return the processor time of all its threads so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask(client: httpx.AsyncClient, prompt: Prompt, count: int) -> Outcome:
    """Stream an answer of ``count`` tokens; return what the client saw."""
    body = {"model": "model", "prompt": prompt.ids, "max_tokens": count, "stream": True}
    body |= {"temperature": 0 if prompt.greedy else 1}
    if prompt.audited:
        body |= {"logprobs": 0, "return_tokens_as_token_ids": True}
    out, began = Outcome(), time.perf_counter()
    last = began
    async with client.stream("POST", "/v1/completions", json={**body, "ignore_eos": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line[6:])["choices"][0]
            text, out.reason = choice["text"], choice["finish_reason"] or out.reason
            if choice["logprobs"]:
                out.tokens += [int(name.removeprefix("token_id:")) for name in choice["logprobs"]["tokens"]]
                out.logprobs += choice["logprobs"]["token_logprobs"]
            now = time.perf_counter()
            if text and not out.text:
                out.first = now - began
            elif text:
                out.gaps.append(now - last)
            last, out.text = now, out.text + text
    out.whole = time.perf_counter() - began
    return out


async def load(url: str, prompts: list[Prompt], count: int, clients: int) -> tuple[list[Outcome], float]:
    """Send all prompts, ``clients`` of them at a time; return the outcomes in order, and the seconds in all."""
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


@dataclass
class Measured:
    """One server at one number of clients in one round."""

    outcomes: list[Outcome]
    seconds: float
    server_cores: float
    client_cores: float
    other_cores: float
    audited: int = 0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.outcomes) / self.seconds


Rounds = list[dict[tuple[str, int], Measured]]  # by server and number of clients


def machine_seconds() -> float:
    """Return the processor time that all processes have used so far, including what the host took away (steal)."""
    user, nice, system, _, _, *more = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(more)) / os.sysconf("SC_CLK_TCK")


def measure(server: Server, prompts: list[Prompt], count: int, clients: int) -> Measured:
    """Send all prompts to one server, and measure its rate and the processor time that was used meanwhile."""
    began = machine_seconds(), server.cpu_seconds(), time.process_time()
    outcomes, seconds = asyncio.run(load(server.url, prompts, count, clients))
    everyone, served, asked = (
        machine_seconds() - began[0],
        server.cpu_seconds() - began[1],
        time.process_time() - began[2],
    )
    other = max(0.0, everyone - served - asked)
    return Measured(outcomes, seconds, served / seconds, asked / seconds, other / seconds)


def make_prompts(name: str, count: int) -> list[Prompt]:
    """Return ``count`` random prompts of unequal length, the same ones in every call."""
    length, draw = WORKLOADS[name][0], random.Random(0)
    vocabulary = 129 if name == "demo" else SHAPES[name]["vocab_size"]
    lengths = [length - draw.randrange(length // 4) for _ in range(count)]
    return [Prompt([draw.randrange(3, vocabulary) for _ in range(each)]) for each in lengths]


def with_audit(prompts: list[Prompt], share: float, seed: int) -> list[Prompt]:
    """Return the prompts, of which a random share, at least one, is marked ``audited``."""
    marked = set(random.Random(seed).sample(range(len(prompts)), max(1, round(share * len(prompts)))))
    return [Prompt(prompt.ids, audited=index in marked) for index, prompt in enumerate(prompts)]


def check_answers(session: Session[Any], prompts: list[Prompt], outcomes: list[Outcome], count: int) -> int:
    """Compute the ``audited`` answers again; return how many there are, or end the run if one is wrong."""
    answers = [
        ServedAnswer(
            tuple(prompt.ids),
            tuple(outcome.tokens),
            tuple(outcome.logprobs),
            outcome.reason,
            count,
            greedy=prompt.greedy,
            stop_at_eos=False,
        )
        for prompt, outcome in zip(prompts, outcomes, strict=True)
        if prompt.audited
    ]
    faults = repeated(answer for answer in answers if not answer.greedy)
    faults += [fault for answer in answers for fault in audit(session, answer, EngineOptions.prefill_budget).faults]
    if faults:
        sys.exit(f"The audit found {len(faults)} faults; nothing is reported. The first: {faults[0]}.")
    return len(answers)


def check_draws(session: Session[Any], server: Server, prompt: Prompt, count: int, clients: int) -> int:
    """Ask for answers to one prompt, drawn at random; compute them again, and return how many."""
    prompts = [Prompt(prompt.ids, greedy=False, audited=True)] * max(REPEATS, clients)
    outcomes, _ = asyncio.run(load(server.url, prompts, count, clients))
    return check_answers(session, prompts, outcomes, count)


def run_rounds(name: str, root: Path, concurrencies: list[int], rounds: int, share: float = 0.0) -> Rounds:
    """Measure one model: both servers at all numbers of clients, in every round."""
    _, count, per_client = WORKLOADS[name]
    artifact = make_artifact(name, root)
    prompts = make_prompts(name, per_client * max(LEAST, *concurrencies))
    texts: dict[int, str] = {}
    out: Rounds = []
    alone = open_session(artifact)
    modes = {"batched": "batched", "sequential": "sequential", **({"audited": "batched"} if share else {})}
    with Server(artifact, ROWS["batched"]) as batched, Server(artifact, ROWS["sequential"]) as sequential:
        servers = {"batched": batched, "sequential": sequential}
        for server in servers.values():
            asyncio.run(load(server.url, prompts[:4], 8, 4))  # warm
        for number in range(rounds):
            turns = [(mode, clients) for mode in modes for clients in concurrencies]
            random.Random(number).shuffle(turns)
            out.append({})
            for mode, clients in turns:
                asked = prompts[: per_client * max(LEAST, clients)]
                server = servers[modes[mode]]
                asked = with_audit(asked, share, number) if mode == "audited" else asked
                measured = out[-1][mode, clients] = measure(server, asked, count, clients)
                if mode == "audited":
                    measured.audited = check_answers(alone, asked, measured.outcomes, count)
                    measured.audited += check_draws(alone, server, asked[0], count, clients)
                for index, outcome in enumerate(measured.outcomes):
                    if texts.setdefault(index, outcome.text) != outcome.text:
                        sys.exit(f"{name}, {mode}, {clients} clients: answer {index} differs; nothing is reported.")
                note = f"{measured.rate:.3f} requests/s; others {measured.other_cores:.2f} cores"
                print(f"{name} round {number}: {mode}, {clients} clients: {note}", flush=True)
    return out


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds."""
    return {f"p{q}": round(1e3 * float(np.percentile(values, q)), 2) for q in (50, 95, 99)}


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    """Return median, least and most."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {key: round(value, digits) for key, value in found.items()}


def summarize(name: str, rounds: Rounds) -> list[dict[str, Any]]:
    """Return a line per server and number of clients: rates over rounds, ratios within them, times of all requests."""
    count, rows = WORKLOADS[name][1], []
    for mode, clients in sorted(rounds[0]):
        runs = [found[mode, clients] for found in rounds]
        outcomes = [outcome for run in runs for outcome in run.outcomes]
        row: dict[str, Any] = {
            "model": name,
            "mode": mode,
            "clients": clients,
            "requests_per_round": len(runs[0].outcomes),
            "requests_per_second": spread([run.rate for run in runs]),
            "tokens_per_second": spread([count * run.rate for run in runs], 1),
            "over_fewest_clients": spread(
                [run.rate / found[mode, min(c for _, c in found)].rate for run, found in zip(runs, rounds, strict=True)]
            ),
            "server_cores": spread([run.server_cores for run in runs], 2),
            "client_cores": spread([run.client_cores for run in runs], 2),
            "other_cores": spread([run.other_cores for run in runs], 2),
            "first_token_ms": percentiles([outcome.first for outcome in outcomes]),
            "between_tokens_ms": percentiles([gap for outcome in outcomes for gap in outcome.gaps]),
            "whole_ms": percentiles([outcome.whole for outcome in outcomes]),
        }
        if mode == "audited":
            row["answers_computed_again"] = sum(run.audited for run in runs)
            row["over_batched"] = spread(
                [found[mode, clients].rate / found["batched", clients].rate for found in rounds]
            )
        if mode == "batched":
            row["over_sequential"] = spread(
                [found[mode, clients].rate / found["sequential", clients].rate for found in rounds]
            )
        rows.append(row)
    return rows


@click.command()
@click.option("--work", type=click.Path(path_type=Path), help="Keep artifacts here for the next time.")
@click.option("--models", default="demo,medium", show_default=True, help="Which models.")
@click.option("--clients", default="1,2,4,8,16", show_default=True, help="How many ask at a time.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="How often each takes its turn.")
@click.option(
    "--audit", "share", type=click.FloatRange(0, 1), default=0.0, help="Compute this share of answers again, alone."
)
@click.option("--prepare", is_flag=True, help="Only export the models.")
def main(work: Path | None, models: str, clients: str, rounds: int, share: float, prepare: bool) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as scratch:
        root = work or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        if prepare:
            for name in models.split(","):
                make_artifact(name, root)
            return
        numbers = [int(number) for number in clients.split(",")]
        measured = {name: run_rounds(name, root, numbers, rounds, share) for name in models.split(",")}
        rows = [row for name, found in measured.items() for row in summarize(name, found)]
    workloads = {name: {"prompt_tokens": f"up to {n}", "new_tokens": m} for name, (n, m, _) in WORKLOADS.items()}
    write_result(
        "serve_load_audit" if share else "serve_load",
        {"workloads": workloads, "rows": ROWS, "rounds": rounds, "results": rows},
    )


if __name__ == "__main__":
    main()
