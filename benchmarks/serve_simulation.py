"""How many replicas a day needs: 1 to 64 of them, three ways of routing, step times as measured, discrete events.

Nothing is served and no model runs. Conversations come over a synthetic day (`simulated_trace.py`); each replica does
what the batcher does, in the same order, and each of its steps takes as long as it was measured to take for the medium
model (`simulated_replica.py`): prompts from `results/prefill.json`, decode steps from `results/batching.json`. Routing
by prefix is the rule that `serve --engine ray` uses, with a table per front door (`simulated_fleet.py`).

A request that finds its replica's queue full is refused, and its conversation ends there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from simulated_fleet import POLICIES, FleetOptions, simulate, summary
from simulated_replica import StepTimes
from simulated_trace import TraceOptions, make_trace

RESULTS = Path(__file__).parent / "results"
SIZES = (1, 2, 4, 8, 16, 32, 64)
TARGET_SECONDS = 2.0  # p99 of the first token


def meets(figures: dict[str, Any]) -> bool:
    """Say whether a fleet serves the day well: nothing refused, and p99 of the first token within the target."""
    return figures["refused"] == 0 and figures["first_token_seconds"]["p99"] <= TARGET_SECONDS


def fewest(run: Callable[[int], dict[str, Any]], known: dict[int, dict[str, Any]]) -> int | None:
    """Return the fewest replicas that serve the day well, by halving between the sizes that are known.

    Args:
        run: Gives the figures of a fleet of that size.
        known: Those that there are already, by size.
    """
    good = [size for size, figures in known.items() if meets(figures)]
    if not good:
        return None
    high = min(good)
    low = max((size for size in known if size < high), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(run(middle)) else (middle, high)
    return high


def measured_times(contender: str = "lucid-growing", model: str = "medium-static") -> StepTimes:
    """Return the medium model's times from the results of the other benchmarks."""
    prefill = json.loads((RESULTS / "prefill.json").read_text())["measurements"]
    prompts = [(m["length"], m["median"]) for m in prefill if (m["contender"], m["batch"]) == (contender, 1)]
    rows = json.loads((RESULTS / "batching.json").read_text())["results"][model]["rows"]
    return StepTimes.fit(prompts, [(int(count), item["decode"]["step_ms"] / 1e3) for count, item in rows.items()])


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Return the lines of the table in the docs; times are in seconds."""
    yield "| replicas | routing | hit rate | refused | first token: p50 / p99 | answer: p50 / p99 | busy |"
    yield "|---|---|---|---|---|---|---|"
    for item in results:
        first, whole = item["first_token_seconds"], item["answer_seconds"]
        refused = f"{item['refused'] / item['asked']:.1%}" if item["refused"] else "0"
        yield (
            f"| {item['replicas']} | {item['routing']} | {item['hit_rate']:.1%} | {refused} "
            f"| {first['p50']:.2f} / {first['p99']:.2f} | {whole['p50']:.1f} / {whole['p99']:.1f} "
            f"| {item['busy_hours']:.1f} h, {item['busy_share']:.1%} |"
        )


@click.command(help=__doc__)
@click.option("--sizes", default=",".join(map(str, SIZES)), show_default=True, help="Numbers of replicas.")
@click.option("--sessions", type=int, default=TraceOptions.sessions, show_default=True, help="Conversations expected.")
@click.option("--prefix-tokens", type=int, default=FleetOptions.prefix_tokens, show_default=True, help="Of a replica.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(sizes: str, sessions: int, prefix_tokens: int, seed: int) -> None:
    """Print the table and write the results."""
    from common import write_result

    began, trace, times = time.perf_counter(), TraceOptions(sessions=sessions, seed=seed), measured_times()
    day = make_trace(trace)
    found: dict[str, dict[int, dict[str, Any]]] = {routing: {} for routing in POLICIES}

    def run(replicas: int, routing: str) -> dict[str, Any]:
        fleet = FleetOptions(replicas, prefix_tokens=prefix_tokens, seed=seed)
        figures = summary(simulate(day, times, fleet, routing), replicas)
        found[routing][replicas] = {"replicas": replicas, "routing": routing, **figures}
        print(list(table([found[routing][replicas]]))[-1], flush=True)
        return figures

    for replicas in map(int, sizes.split(",")):
        for routing in POLICIES:
            run(replicas, routing)
    needed = {routing: fewest(partial(run, routing=routing), dict(found[routing])) for routing in POLICIES}
    results = sorted((item for one in found.values() for item in one.values()), key=lambda item: item["replicas"])
    print(*table(results), f"fewest replicas: {needed}", sep="\n")
    fleet = asdict(FleetOptions(1, prefix_tokens=prefix_tokens, seed=seed))
    del fleet["replicas"]
    turns = sum(len(session.turns) for session in day)
    lasted = {"sessions": len(day), "turns": turns, "seconds_to_simulate": time.perf_counter() - began}
    settings = {"trace": asdict(trace), "fleet": fleet, "step_times": asdict(times), "target_seconds": TARGET_SECONDS}
    write_result("serve_simulation", {**settings, "day": lasted, "fewest_replicas": needed, "results": results})


if __name__ == "__main__":
    main()
