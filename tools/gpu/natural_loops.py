"""Find the instructions that each loop repeats, from the branches of compiled code.

Not every backward branch closes a loop: compilers put rarely run code, such as another wait, behind a function's end
and branch back from there into the middle of a loop. A branch closes a loop if its target is on every path from the
function's start to the branch; the loop then has all instructions that reach the branch without passing its target.
(Aho, Lam, Sethi, Ullman, "Compilers", natural loops.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Flow(NamedTuple):
    """Where an instruction leads: to another one by its index, to the next, to either, or nowhere."""

    target: int | None
    goes_on: bool


def natural_loops(code: Sequence[Flow]) -> list[list[int]]:
    """Return each loop's instruction indices, ascending.

    Branches back to the same target make one loop. An instruction that branches to itself is not counted.
    """
    blocks = _blocks(code)
    start_of = {block[0]: number for number, block in enumerate(blocks)}
    after = [[start_of[i] for i in _successors(code, block[-1])] for block in blocks]
    dominators = _dominators(after)
    bodies: dict[int, set[int]] = {}
    for block, targets in enumerate(after):
        for head in targets:
            if dominators[block] >> head & 1:
                bodies.setdefault(head, {head}).update(_body(after, head, block))
    loops = [sorted(i for block in body for i in blocks[block]) for body in bodies.values()]
    return [loop for loop in loops if len(loop) > 1]


def _blocks(code: Sequence[Flow]) -> list[range]:
    """Return the basic blocks: runs of instructions that are entered only at the first and left only at the last."""
    starts = {0}
    for i, (target, goes_on) in enumerate(code):
        if target is not None:
            starts.add(target)
        if target is not None or not goes_on:
            starts.add(i + 1)
    return [range(*ends) for ends in pairwise([*sorted(each for each in starts if each < len(code)), len(code)])]


def _successors(code: Sequence[Flow], last: int) -> list[int]:
    target, goes_on = code[last]
    following = [last + 1] if goes_on and last + 1 < len(code) else []
    return following if target is None else [target, *following]


def _dominators(after: list[list[int]]) -> list[int]:
    """Return each block's dominators (the blocks on every path to the block) as bits; 0 for an unreachable block."""
    before: list[list[int]] = [[] for _ in after]
    for block, targets in enumerate(after):
        for target in targets:
            before[target].append(block)
    found = [0] * len(after)
    if found:
        found[0] = 1
    changed = True
    while changed:
        changed = False
        for block in range(1, len(after)):
            reached = [found[each] for each in before[block] if found[each]]
            if not reached:
                continue
            common = reached[0]
            for each in reached[1:]:
                common &= each
            common |= 1 << block
            changed, found[block] = changed or common != found[block], common
    return found


def _body(after: list[list[int]], head: int, tail: int) -> set[int]:
    """Return the blocks from which ``tail`` is reached without passing ``head``."""
    found, open_blocks = {tail}, [tail]
    while open_blocks:
        block = open_blocks.pop()
        if block == head:
            continue
        for each, targets in enumerate(after):
            if block in targets and each not in found:
                found.add(each)
                open_blocks.append(each)
    return found
