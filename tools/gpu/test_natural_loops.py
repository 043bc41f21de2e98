"""Loops are what is repeated, wherever compilers put it."""

from tools.gpu.machine_code import BYTES, Code, Instruction
from tools.gpu.natural_loops import Flow, natural_loops


def loops(text: str) -> list[list[int]]:
    """One instruction a word: ``B3`` branches to the third, counted from 0, ``P3`` does if a predicate holds."""
    flow = []
    for word in text.split():
        target = int(word[1:]) if word[0] in "BP" else None
        flow.append(Flow(target, word != "EXIT" and word[0] != "B"))
    return natural_loops(flow)


def test_one_within_the_other() -> None:
    assert loops("MOV ADD MUL P2 P1 EXIT") == [[2, 3], [1, 2, 3, 4]]


def test_what_waits_behind_the_end_belongs_to_the_loop_that_it_goes_back_to() -> None:
    """1 to 4 are the loop; it leaves for 6, waits there, and goes on at 3. The branch from 8 to 3 closes none."""
    assert loops("MOV ADD P6 MUL P1 EXIT TRY P6 B3") == [[1, 2, 3, 4, 6, 7, 8], [6, 7]]


def test_two_ways_back_make_one_loop() -> None:
    assert loops("MOV ADD P1 MUL P1 EXIT") == [[1, 2, 3, 4]]


def test_what_is_no_loop() -> None:
    assert loops("MOV B3 ADD MUL EXIT") == []
    assert loops("MOV EXIT B2") == [], "an instruction that branches to itself"
    assert loops("MOV EXIT ADD MUL B2") == [], "nothing leads there"
    assert natural_loops([]) == []


def test_a_branch_goes_on_if_a_predicate_says_when_it_is_taken() -> None:
    back = hex(BYTES)
    branches = [("BRA.U", f"UP0,{back}", ""), ("BRA", back, "@!P0"), ("BRA", back, ""), ("EXIT", "", "@P0")]
    code = [Instruction(0, "MOV"), Instruction(BYTES, "ADD")]
    code += [Instruction(BYTES * index, *branch) for index, branch in enumerate(branches, start=2)]
    found = Code(tuple(code), registers=32, stack=0)
    assert found.flow == [(None, True), (None, True), (1, True), (1, True), (1, False), (None, True)]
    assert [len(loop) for loop in found.loops] == [4]
