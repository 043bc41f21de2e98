"""OpenVINO GenAI's continuous batching for `serving_peers.py`: reads lists of requests as lines of JSON.

It runs in an environment of its own with `openvino-genai`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

import numpy as np


def run(pipe: Any, requests: list[dict[str, Any]], clients: int) -> dict[str, Any]:
    """Answer all requests, ``clients`` of them at a time; return the times of their tokens."""
    import openvino as ov
    import openvino_genai as genai

    began = time.perf_counter()
    waiting, out, active, number = list(requests)[::-1], [], [], 0
    while waiting or active:
        while waiting and len(active) < clients:
            asked = waiting.pop()
            chosen = {"do_sample": True, "temperature": asked["temperature"], "top_p": 0.9}
            chosen = chosen if asked["temperature"] else {"do_sample": False}
            config = genai.GenerationConfig(max_new_tokens=asked["new"], ignore_eos=True, **chosen)
            handle = pipe.add_request(number, ov.Tensor(np.array([asked["ids"]], np.int64)), config)
            active.append((handle, time.perf_counter(), [], asked["new"]))
            number += 1
        pipe.step()
        now = time.perf_counter()
        for each in list(active):
            handle, asked_at, times, new = each
            while handle.can_read():
                for piece in handle.read().values():
                    times.extend([now] * len(piece.generated_ids))
            if len(times) >= new:
                active.remove(each)
                gaps = [after - before for before, after in itertools.pairwise(times)]
                out.append({"first": times[0] - asked_at, "gaps": gaps})
    return {"outcomes": out, "seconds": time.perf_counter() - began}


def main() -> None:
    """Load the model, print that it is ready, and answer each line from stdin."""
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2  # GiB
    scheduler.enable_prefix_caching = True
    pipe = genai.ContinuousBatchingPipeline(sys.argv[1], scheduler, "CPU")
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(run(pipe, asked["requests"], asked["clients"])), flush=True)


if __name__ == "__main__":
    main()
