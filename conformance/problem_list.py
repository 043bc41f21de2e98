"""The list of all cases of operators."""

from __future__ import annotations

from dataclasses import replace

from lucid_deploy.conformance.problems import Problem
from lucid_deploy.plugins import table

_HALF = ("float16", "bfloat16")
# Pairs (new tokens, tokens of the cache), with numbers below, at and above the size of a block: 64, 96 or 128.
_LENGTHS = (
    *((2, 0), (63, 0), (64, 0), (127, 0), (128, 0), (129, 0)),
    *((1, 64), (2, 65), (63, 129), (64, 64), (65, 63), (127, 2), (128, 128), (129, 127)),
    *((2, 97), (96, 96), (97, 1)),
)
_FEWER_LENGTHS = ((2, 65), (64, 64), (65, 63), (129, 127))
_PASTS = tuple((1, past) for past in (1, 2, 63, 64, 127, 128, 129, 96, 97))
_FEWER_PASTS = tuple((1, past) for past in (64, 129))
# Multiples of 64 (256) and of 16 (96, 112), and of neither (68), which leaves 4 floats beside vectors of 8 or 16.
_WIDTHS = (68, 96, 112, 256)
_BOUNDARIES = "numbers of new and cached tokens around 64 and 128, one data set for each pair"
_MORE_BOUNDARIES = _BOUNDARIES.replace("64 and", "64, 96 and")


def _in_types(problem: Problem, types: tuple[str, ...] = _HALF) -> list[Problem]:
    """Return copies of a problem in other types."""
    return [replace(problem, name=f"{problem.name}_{dtype}", dtype=dtype) for dtype in types]


def _of_training(problem: Problem, name: str, also: str = "") -> Problem:
    """Return a copy of a problem with training's diagonal, and with keys so small that the diagonal matters."""
    text = f"the diagonal that training code divides by, small keys{also}"
    return replace(problem, name=name, text=text, diagonal=1.0, size=0.05)


def _wide(problem: Problem) -> list[Problem]:
    """Return copies of a problem with the head widths of real models."""
    text = f"{problem.text}, heads as wide as in real models"
    return [replace(problem, name=f"width_{width}", text=text, width=width) for width in _WIDTHS]


def _precondition() -> list[Problem]:
    def make(name: str, text: str, **fields: object) -> Problem:
        return Problem(table.PRECONDITION, name, text, **fields)  # type: ignore[arg-type]

    correlated = make("correlated", "keys that resemble each other", new=40, keys=0.9)
    repeated = make("repeated", "three keys that repeat, across a boundary of 32 rows", new=45, keys=1.0)
    past = make("past_padded", "a past, padding on the left and a hole", new=19, past=24, padded=True, batch=2, heads=1)
    boundaries = make("boundaries", _BOUNDARIES, new=65, width=2, heads=1, keys=0.95, lengths=_FEWER_LENGTHS)
    return [
        make("one_token", "one token and no past; a kernel that computes the diagonal is off by eps", keys=0.9),
        make("one_token_past", "one token after a past", past=21, keys=0.95),
        correlated,
        make("close", "keys that hardly differ, in more than two blocks of 32 rows", new=75, width=16, keys=0.99),
        repeated,
        make("past", "a past that is longer than the new tokens, and no multiple of a block", new=9, past=37),
        make("past_of_one", "many tokens after a single one", new=34, past=1, keys=0.95),
        replace(past, lengths=((100, 11),)),
        make("padded", "padding on the left and a hole, no past", new=37, padded=True, batch=3, keys=0.95),
        make("odd_width", "a width of 5", new=23, past=6, width=5),
        make("wide", "a width of 33", new=18, past=3, width=33, heads=1),
        make("width_of_one", "a width of 1, where a normalised key is a sign", new=12, past=3, width=1),
        make("small_keys", "keys so small that eps counts", new=20, past=5, size=0.01),
        make("many_rows", "more than 128 rows", new=140, past=3, width=6, heads=1, keys=0.95),
        make(
            "long",
            "more rows than an outer block of 1024; two new tokens after a past of 1025",
            new=1060,
            width=2,
            heads=1,
            keys=0.9,
            lengths=((2, 1025),),
        ),
        *_wide(make("width", "new tokens and a past", new=7, past=4, heads=1, keys=0.95)),
        _of_training(past, "diagonal"),
        *_in_types(correlated),
        *_in_types(repeated),
        *_in_types(past),
        *_in_types(make("close", "keys that hardly differ", new=50, width=16, keys=0.99, heads=1)),
        replace(boundaries, text=_MORE_BOUNDARIES, lengths=_LENGTHS),
        *_in_types(boundaries),
    ]


def _causal_attention() -> list[Problem]:
    def make(name: str, text: str, **fields: object) -> Problem:
        return Problem(table.CAUSAL_ATTENTION, name, text, **fields)  # type: ignore[arg-type]

    past = make("past_padded", "a past, grouped heads, padding and a hole", new=7, past=12, padded=True, batch=2)
    grouped = make("grouped", "three query heads to a key/value head", new=11, groups=3)
    boundaries = make("boundaries", _BOUNDARIES, new=65, width=2, heads=1, groups=1, lengths=_FEWER_LENGTHS)
    return [
        make("one_token", "one token, which attends only to itself", groups=2),
        make("one_token_past", "one token after a past", past=19, groups=2),
        grouped,
        make("ungrouped", "as many key/value heads as query heads", new=20, past=2, groups=1, keys=0.5),
        make("one_head", "all query heads share one", new=9, past=4, heads=1, groups=4, keys=0.5),
        replace(past, batch=3, lengths=((100, 11),)),
        make("repeated", "three keys that repeat", new=33, keys=1.0),
        make("odd_width", "a width of 5", new=14, past=3, width=5, keys=0.5),
        make("many_rows", "more rows than a block of 256 has", new=270, width=2, heads=1, groups=2, keys=0.5),
        make("long_past", "two tokens after 1025", new=2, past=1025, width=2, heads=1, groups=2, keys=0.5),
        *_wide(make("width", "new tokens and a past", new=3, past=5, heads=1, keys=0.5)),
        *_in_types(grouped),
        *_in_types(past),
        replace(boundaries, text=_MORE_BOUNDARIES, lengths=_LENGTHS),
        *_in_types(boundaries),
    ]


def _decode_attention() -> list[Problem]:
    def make(name: str, text: str, **fields: object) -> Problem:
        return Problem(table.DECODE_ATTENTION, name, text, **fields)  # type: ignore[arg-type]

    past = make("past", "grouped heads over a past", past=30, groups=3)
    buffer = make("buffer", "a buffer whose last rows hold no token", past=17, hidden=9, batch=2, keys=0.95)
    boundaries = make("boundaries", _BOUNDARIES, past=65, width=2, heads=1, lengths=_FEWER_PASTS)
    wide = _wide(make("width", "seven query heads to a key/value head", past=9, groups=7))
    several = make("several", "five tokens at once, padding and a hole", new=5, past=23, padded=True, batch=3, groups=3)
    return [
        make("no_past", "the first token, with an empty cache", groups=2),
        past,
        make("padded", "padding on the left and a hole", past=26, padded=True, batch=2, keys=0.95),
        buffer,
        make("repeated", "three keys that repeat", past=40, keys=1.0, heads=1, groups=4),
        make("odd_width", "a width of 7", past=15, width=7),
        make("small_keys", "keys so small that eps counts", past=12, size=0.01),
        make(
            "many_rows",
            "a past of more than a chunk of 1024 tokens: 76 more, one more, and one more than two chunks",
            past=1100,
            width=2,
            heads=1,
            groups=2,
            lengths=((1, 1025), (1, 2049)),
        ),
        *wide[:-1],
        *_in_types(wide[-1], ("float16",)),
        *_in_types(
            make("wide_long", "wide heads over 129 tokens", past=129, width=136, heads=1, groups=7), ("float16",)
        ),
        several,
        make("several_hole", "nine tokens at once, two of them masked", new=9, past=3, padded=True, batch=2, heads=1),
        make("several_repeated", "nine tokens at once, three keys that repeat", new=9, past=10, keys=1.0, heads=1),
        make(
            "several_wide",
            "many query rows at once: twelve tokens, three query heads to a key/value head",
            new=12,
            past=37,
            width=36,
            heads=1,
            groups=3,
            lengths=((2, 0), (16, 2), (11, 20)),
        ),
        _of_training(buffer, "diagonal"),
        _of_training(several, "several_diagonal", ", several tokens"),
        *_in_types(past),
        *_in_types(buffer),
        *_in_types(several),
        replace(boundaries, text=_MORE_BOUNDARIES, lengths=_PASTS),
        *_in_types(boundaries),
    ]


def _stored_caches() -> list[Problem]:
    found = []
    for operator in (table.DECODE_ATTENTION_FLOAT16, table.DECODE_ATTENTION_INT8, table.DECODE_ATTENTION_FLOAT8):
        dtype = operator.types[0]
        past = Problem(operator, "past", "grouped heads over a past", dtype, past=30, groups=3)
        buffer = Problem(
            operator, "buffer", "a buffer whose last rows hold no token", dtype, past=11, hidden=6, batch=2
        )
        found += [past, replace(buffer, keys=0.95, width=7)]
        found.append(
            replace(past, name="diagonal", text="the diagonal of training, small keys", diagonal=1.0, size=0.05)
        )
        found += _in_types(past, operator.types[1:])
        found.append(
            Problem(operator, "boundaries", _BOUNDARIES, dtype, past=65, width=2, heads=1, lengths=_FEWER_PASTS)
        )
    return found


def _scatter_row() -> list[Problem]:
    first = Problem(table.SCATTER_ROW, "buffer", "a row of each buffer, the first and the last", new=6, batch=2)
    return [first, *_in_types(first, ("float16", "bfloat16", "int8"))]


def _delta_rule() -> list[Problem]:
    def make(name: str, text: str, **fields: object) -> Problem:
        return Problem(table.DELTA_RULE, name, text, **{"groups": 1, **fields})  # type: ignore[arg-type]

    state = make("state_padded", "a state, decay, padding and a hole", new=21, past=1, padded=True, batch=2, decay=-0.3)
    repeated = make("repeated", "three keys that repeat, and decay", new=45, keys=1.0, decay=-0.1)
    return [
        make("one_token", "one token, and a state of 0"),
        make("one_token_state", "one token after others, with decay", past=1, decay=-0.5, batch=2),
        make("plain", "no decay, keys that resemble each other", new=40),
        make("overshooting", "β of 1 to 2, repeated keys", new=30, keys=1.0, beta=2.0, past=1),
        make("chunks", "more tokens than two chunks of 64 have, with decay", new=131, past=1, decay=-0.02, heads=1),
        make("whole_chunk", "as many tokens as a chunk of 64 has", new=64, past=1, decay=-0.1, heads=1),
        make("forgetting", "decay to nothing between neighbours", new=70, past=1, decay=-60.0, heads=1),
        make("odd_width", "keys 5 wide", new=23, width=5, past=1, decay=-0.2),
        make("width_of_one", "keys 1 wide, where a normalised key is a sign", new=12, width=1, past=1),
        state,
        repeated,
        *_in_types(state),
        *_in_types(repeated),
        make("boundaries", _BOUNDARIES, new=65, width=2, heads=1, decay=-0.02, lengths=_LENGTHS[:6]),
    ]


def _expert_matmul() -> list[Problem]:
    def make(name: str, text: str, **fields: object) -> Problem:
        return Problem(table.EXPERT_MATMUL, name, text, **fields)  # type: ignore[arg-type]

    several = make("several", "rows that resemble each other, and experts that nobody chose", new=37, heads=9, groups=5)
    return [
        make("one_token", "the two choices of one token", new=2, heads=8),
        make("all_chosen", "each expert has rows", new=21, heads=4, groups=4),
        make("blocks", "more rows than two blocks of 64", new=129, heads=2, width=5, groups=2),
        make("odd_width", "rows 5 wide, which repeat", new=23, width=5, keys=1.0, heads=3, groups=3),
        several,
        *_in_types(several),
    ]


def _quantized_expert_matmul() -> list[Problem]:
    def make(name: str, text: str, **fields: object) -> Problem:
        return Problem(table.QUANTIZED_EXPERT_MATMUL, name, text, **fields)  # type: ignore[arg-type]

    several = make("int4", "rows that resemble each other, 4 bits", new=19, width=96, heads=7, groups=4, past=4)
    return [
        make("one_token", "the two choices of one token, 8 bits", new=2, width=32, heads=5, groups=2, past=8),
        several,
        *_in_types(several, ("float16",)),
    ]


PROBLEMS = (
    *_precondition(),
    *_causal_attention(),
    *_decode_attention(),
    *_stored_caches(),
    *_delta_rule(),
    *_expert_matmul(),
    *_quantized_expert_matmul(),
    *_scatter_row(),
)
