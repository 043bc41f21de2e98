"""Prompts and decoding rows in one run of a joined graph, or one after the other: tokens per second and their gaps.

``python benchmarks/shared_steps.py ARTIFACT``; the artifact has quantized weights and ``--cache static``. Clients send
one request after another: prompts of 200 random tokens, answers of 64. Rounds are interleaved, and every answer of both
ways is compared: nothing is printed if one token differs.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

from lucid_deploy.artifact import open_artifact
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.runtimes import open_session

TURNS = 3  # requests of each client in a round


def drive(batcher: Batcher, clients: int, seed: int) -> tuple[list[list[int]], list[float]]:
    """Run a round; return the answers, and tokens/s, tokens per processor second, p50 and p95 between tokens in ms."""
    rng = np.random.default_rng(seed)
    vocabulary = batcher.session.config.vocab_size
    requests = [
        Request(rng.integers(vocabulary, size=200).tolist(), 64, stop_at_eos=False) for _ in range(TURNS * clients)
    ]
    waiting, answers, last, gaps = iter(requests), dict[int, list[int]](), dict[int, float](), list[float]()
    for _ in range(clients):
        batcher.submit(next(waiting))
    started, processor = time.perf_counter(), time.process_time()
    while not batcher.idle:
        for events in batcher.parts():
            now = time.perf_counter()
            for event in events:
                if isinstance(event, Finished) and (request := next(waiting, None)) is not None:
                    batcher.submit(request)
                if isinstance(event, Token):
                    answers.setdefault(event.request, []).append(event.token)
                    if event.request in last:
                        gaps.append(1e3 * (now - last[event.request]))
                    last[event.request] = now
    count = sum(map(len, answers.values()))
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    figures = [count / seconds, count / processor, *np.percentile(gaps, [50, 95])]
    return [answers[number] for number in sorted(answers)], figures


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--prefill-budget", "budget", default=32, show_default=True)
def main(artifact: Path, rounds: int, budget: int) -> None:
    """Compare both ways with 4, 8 and 16 clients."""
    session = open_session(open_artifact(artifact))
    for clients in (4, 8, 16):
        ways = {is_shared: Batcher(session, clients, budget) for is_shared in (True, False)}
        assert ways[True]._shares_steps, "no steps are shared with this artifact, runtime or library"
        ways[False]._shares_steps = False
        found: dict[bool, list[list[float]]] = {True: [], False: []}
        for turn in range(rounds + 1):  # the first warms up
            answers = {}
            for is_shared in (True, False) if turn % 2 else (False, True):
                answers[is_shared], figures = drive(ways[is_shared], clients, turn)
                found[is_shared] += [figures] if turn else []
            if answers[True] != answers[False]:
                raise SystemExit("Answers differ; nothing is printed.")
        for is_shared, figures in found.items():
            wall, processor, p50, p95 = np.median(figures, axis=0)
            print(
                f"{clients} clients, {'together' if is_shared else 'one after the other'}: {wall:.0f} tokens/s, "
                f"{processor:.0f} per processor second, p50 {p50:.1f} ms, p95 {p95:.1f} ms ({p95 / p50:.1f})"
            )
        together, apart = (np.array(found[way])[:, :2] for way in (True, False))
        print(
            "  together over apart: tokens/s {:.2f}, per processor second {:.2f}".format(
                *np.median(together / apart, 0)
            )
        )


if __name__ == "__main__":
    main()
