"""How long a multiprocessor takes for a tile of the cache when decoding, memory and its latency included.

Decoding reads K and Y once and computes little with them, so its loop should do nothing but wait for memory. With the
issue model's cycles of one pass, a tile of a program takes a multiprocessor, in cycles, at least the largest of

- what memory takes: the tile's bytes over the multiprocessor's share of the bandwidth;
- what the multiprocessor's units take: the issue model's cycles;
- what a program takes alone, over the programs that are resident. A warp waits DEPENDENT_CYCLES for a result and has
  INDEPENDENT instructions to issue meanwhile, which bounds a pass through the loop from below. With s stages a program
  has room for s - 1 tiles, and starts a tile's copy when it has computed with the tile before in the same place. So it
  finishes s - 1 tiles in no less than one pass and one latency of memory; with one stage nothing is copied ahead, and
  K's and Y's latencies both come on top of the pass. That is Little's law: bytes in flight, over latency, are
  bandwidth.

The loop meets the target if the issue model's cycles are at most half of what memory takes: then what that model leaves
out may double them.

Sources. Cards: NVIDIA's data sheets and white papers; the clocks of H100, H200 and B200 follow from the tensor cores'
peak that they state. DEPENDENT_CYCLES: CUDA C++ Programming Guide, "Multiprocessor Level": four cycles
for most arithmetic. LATENCY: pointer chasing on an idle A100, H100 and RTX 4090 takes 466 to 542 cycles (Luo et al.,
arXiv 2402.13499); twice that, because a busy memory takes longer. INDEPENDENT is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from lucid_deploy.plugins.decode_attention.plan import TARGET_PROGRAMS

DEPENDENT_CYCLES = 4
INDEPENDENT = 2
LATENCY = 1000  # cycles


@dataclass(frozen=True)
class Card:
    """A GPU as sold.

    Attributes:
        name: Its name.
        multiprocessors: How many.
        clock: Boost clock, MHz.
        bandwidth: Of its memory, GB/s.
    """

    name: str
    multiprocessors: int
    clock: int
    bandwidth: int

    @property
    def bytes_per_cycle(self) -> float:
        """A multiprocessor's share of the bandwidth."""
        return 1000 * self.bandwidth / (self.multiprocessors * self.clock)

    @property
    def programs(self) -> float:
        """Programs of decoding for each multiprocessor, of those that are launched at once."""
        return TARGET_PROGRAMS / self.multiprocessors


# By compute capability; the first has most bandwidth for a multiprocessor, which leaves least time to compute.
CARDS = {
    80: (Card("A100 80 GB", 108, 1410, 2039),),
    86: (Card("RTX 3090", 82, 1695, 936),),
    89: (Card("RTX 4090", 128, 2520, 1008),),
    90: (Card("H200", 132, 1830, 4800), Card("H100", 132, 1830, 3350)),
    100: (Card("B200", 148, 1856, 8000),),
    120: (Card("RTX 5090", 170, 2407, 1792),),
}


@dataclass(frozen=True)
class Tile:
    """A tile of the cache, and the loop that reads it.

    Attributes:
        bytes: Of K and Y.
        cycles: By the issue model, of a multiprocessor.
        instructions: Of a warp, for one pass.
        stages: Depth of the software pipeline.
        resident: Programs that fit on a multiprocessor at once.
    """

    bytes: int
    cycles: float
    instructions: int
    stages: int
    resident: int


def memory_cycles(n_bytes: int, card: Card) -> float:
    """Return how long a multiprocessor's share of the bandwidth takes to bring so many bytes."""
    return n_bytes / card.bytes_per_cycle


def tile_cycles(tile: Tile, card: Card) -> float:
    """Return how long a multiprocessor takes for a tile at least, in cycles."""
    alone = max(tile.cycles, tile.instructions * DEPENDENT_CYCLES / INDEPENDENT)
    ahead = tile.stages - 1
    one_program = max(alone, (alone + LATENCY) / ahead) if ahead else alone + 2 * LATENCY
    return max(memory_cycles(tile.bytes, card), tile.cycles, one_program / min(tile.resident, card.programs))
