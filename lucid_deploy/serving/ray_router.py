"""Routing by shared prefix on Ray Serve: a prompt goes to the engine that has its beginning in the cache.

Ray's own ``PrefixCacheAffinityRouter`` lives in ``ray.serve.llm``, which does not import without vLLM or SGLang. This
one stands on the public interface for routers, ``ray.serve.request_router``; the rule itself is in
:mod:`lucid_deploy.serving.prefix_routing`.
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from lucid_deploy.serving.engine import Job
from lucid_deploy.serving.prefix_routing import PrefixTable, block_names, preferred


class PrefixRouter(RequestRouter):
    """Prefers the engine that has the longest prefix of a prompt, unless it is much busier than the idlest one."""

    def initialize_state(self, imbalance: int = 8, **_unused: Any) -> None:
        """Set up; ``imbalance`` is how many requests more than the idlest engine the preferred one may have."""
        self._imbalance = imbalance
        self._table: PrefixTable = PrefixTable()

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
        loads = {name: self.replica_queue_len_cache.get(replica.replica_id) for name, replica in by_name.items()}
        found = preferred(self._table, block_names(job.prompts[0], job.cache_owner), loads, self._imbalance)
        return [others] if found is None else [[by_name[found]], others]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember where a prompt went; called by Ray."""
        job = _job(pending_request)
        if job is not None:
            self._table.note(block_names(job.prompts[0], job.cache_owner), replica_id.to_full_id_str())


def _job(request: PendingRequest | None) -> Job | None:
    first = request.args[0] if request is not None and request.args else None
    return first if isinstance(first, Job) else None
