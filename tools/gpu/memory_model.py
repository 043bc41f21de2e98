"""How long memory takes to bring a tile of the cache to a multiprocessor when decoding.

Decoding reads K and Y once and computes little with them, so its loop should do nothing but wait for memory. It meets
the target if the issue model's cycles are at most half of what memory takes: then what that model leaves out may double
them. Cards: NVIDIA's data sheets and white papers; the clocks of H100, H200 and B200 follow from the tensor cores' peak
that they state.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU as sold."""

    name: str  # its name
    multiprocessors: int  # how many
    clock: int  # boost clock, MHz
    bandwidth: int  # of its memory, GB/s

    @property
    def bytes_per_cycle(self) -> float:
        """A multiprocessor's share of the bandwidth."""
        return 1000 * self.bandwidth / (self.multiprocessors * self.clock)


# By compute capability; the first has most bandwidth for a multiprocessor, which leaves least time to compute.
CARDS = {
    80: (Card("A100 80 GB", 108, 1410, 2039),),
    86: (Card("RTX 3090", 82, 1695, 936),),
    89: (Card("RTX 4090", 128, 2520, 1008),),
    90: (Card("H200", 132, 1830, 4800), Card("H100", 132, 1830, 3350)),
    100: (Card("B200", 148, 1856, 8000),),
    120: (Card("RTX 5090", 170, 2407, 1792),),
}


def memory_cycles(n_bytes: int, card: Card) -> float:
    """Return how long a multiprocessor's share of the bandwidth takes to bring so many bytes."""
    return n_bytes / card.bytes_per_cycle
