"""Routing by shared prefix on Ray Serve: a prompt goes to the engine that has its beginning in the cache.

Ray's own ``PrefixCacheAffinityRouter`` lives in ``ray.serve.llm``, which does not import without vLLM or SGLang. This
one stands on the public interface for routers, ``ray.serve.request_router``.
"""

from __future__ import annotations

import hashlib
import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from lucid_deploy.serving.jobs import Job

BLOCK = 32  # tokens; prefixes are compared in whole blocks
MOST_BLOCKS = 256  # of a prompt that are looked at


class PrefixRouter(RequestRouter):
    """Prefers the engine that has the longest prefix of a prompt, unless it is much busier than the idlest one."""

    remembered = 100_000  # blocks

    def initialize_state(self, imbalance: int = 8, **_unused: Any) -> None:
        """Set up; ``imbalance`` is how many requests more than the idlest engine the preferred one may have."""
        self._imbalance = imbalance
        self._engines: OrderedDict[bytes, str] = OrderedDict()  # the engine that last ran a prefix, by its name

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return engines in order of preference: the one with the prefix, then two, of which Ray takes the idler."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # every candidate is in what is returned
        others = random.sample(candidate_replicas, min(2, len(candidate_replicas)))
        by_name = {replica.replica_id.to_full_id_str(): replica for replica in candidate_replicas}
        engines = (self._engines.get(block) for block in reversed(_blocks(pending_request)))
        found = next((engine for engine in engines if engine in by_name), None)
        if found is None:
            return [others]
        queues = self.replica_queue_len_cache
        loads = {name: queues.get(replica.replica_id) for name, replica in by_name.items()}  # None: unknown
        idlest = min((load for load in loads.values() if load is not None), default=0)
        if (loads[found] or 0) - idlest > self._imbalance:
            return [others]
        return [[by_name[found]], others]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember where a prompt went; called by Ray. What was used longest ago is forgotten first."""
        for block in _blocks(pending_request):
            self._engines[block] = replica_id.to_full_id_str()
            self._engines.move_to_end(block)
        while len(self._engines) > self.remembered:
            self._engines.popitem(last=False)


def _blocks(request: PendingRequest | None) -> list[bytes]:
    job = request.args[0] if request is not None and request.args else None
    return block_names(job.prompts[0], job.request.cache_owner) if isinstance(job, Job) else []


def block_names(prompt: Sequence[int], owner: str = "") -> list[bytes]:
    """Return the names of a prompt's whole blocks; they differ between owners, as stored prefixes do.

    A name is a hash of everything up to the block's end, so it names a prefix.
    """
    names, digest = [], hashlib.blake2b(owner.encode(), digest_size=16)
    for start in range(0, min(len(prompt) - BLOCK, BLOCK * (MOST_BLOCKS - 1)) + 1, BLOCK):
        digest.update(",".join(map(str, prompt[start : start + BLOCK])).encode() + b";")
        names.append(digest.digest())
    return names
