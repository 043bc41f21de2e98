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
REMEMBERED = 100_000  # blocks


class PrefixTable:
    """Which engine last ran a prefix.

    Blocks are named by a hash of everything up to their end, so that a name stands for a whole prefix.
    """

    def __init__(self) -> None:
        self._engines: OrderedDict[bytes, str] = OrderedDict()

    def find(self, names: Sequence[bytes], engines: set[str]) -> str | None:
        """Return the engine, of those that are there, with the longest prefix; None if there is none."""
        for name in reversed(names):
            engine = self._engines.get(name)
            if engine in engines:
                return engine
        return None

    def note(self, names: Sequence[bytes], engine: str) -> None:
        """Remember that an engine runs a prompt; what was used longest ago is forgotten first."""
        for name in names:
            self._engines[name] = engine
            self._engines.move_to_end(name)
        while len(self._engines) > REMEMBERED:
            self._engines.popitem(last=False)


def block_names(prompt: Sequence[int], owner: str = "") -> list[bytes]:
    """Return the names of a prompt's whole blocks; they differ between owners, as stored prefixes do."""
    names, digest = [], hashlib.blake2b(owner.encode(), digest_size=16)
    for start in range(0, min(len(prompt) - BLOCK, BLOCK * (MOST_BLOCKS - 1)) + 1, BLOCK):
        digest.update(",".join(map(str, prompt[start : start + BLOCK])).encode() + b";")
        names.append(digest.digest())
    return names


class PrefixRouter(RequestRouter):
    """Prefers the engine that has the longest prefix of a prompt, unless it is much busier than the idlest one."""

    def initialize_state(self, imbalance: int = 8, **_unused: Any) -> None:
        """Set up.

        Args:
            imbalance: Requests that the preferred engine may have beyond the idlest one.
        """
        self._imbalance = imbalance
        self._table = PrefixTable()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return engines in order of preference: the one with the prefix, then two, of which Ray takes the idler."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # every candidate is in what is returned
        others = random.sample(candidate_replicas, min(2, len(candidate_replicas)))
        job = _job(pending_request)
        if job is None:
            return [others]
        by_name = {replica.replica_id.to_full_id_str(): replica for replica in candidate_replicas}
        found = self._table.find(block_names(job.prompts[0], job.cache_owner), set(by_name))
        if found is None or self._is_overloaded(by_name[found], candidate_replicas):
            return [others]
        return [[by_name[found]], others]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember where a prompt went; called by Ray."""
        job = _job(pending_request)
        if job is not None:
            self._table.note(block_names(job.prompts[0], job.cache_owner), replica_id.to_full_id_str())

    def _is_overloaded(self, preferred: RunningReplica, candidates: list[RunningReplica]) -> bool:
        loads = {replica.replica_id: self.replica_queue_len_cache.get(replica.replica_id) for replica in candidates}
        known = [load for load in loads.values() if load is not None]
        mine = loads[preferred.replica_id]
        return mine is not None and mine - min(known) > self._imbalance


def _job(request: PendingRequest | None) -> Job | None:
    first = request.args[0] if request is not None and request.args else None
    return first if isinstance(first, Job) else None
