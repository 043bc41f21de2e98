"""Try every causal language model that transformers knows, and write docs/families.md: right, or refused with a reason.

Run it with ``make test-families``. A small random model of each class is saved as a checkpoint, read by lucid-deploy,
and compared with transformers' eager attention in float64: in one pass, and in chunks and single tokens. Its decode
graph is traced, as an export would.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions
from lucid_deploy.export.trace import trace
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.families import BUILT_IN
from lucid_deploy.model.transformers_class.trial import TOLERANCE, prove
from tests.families.small import VOCABULARY, logits_of, saved, small_config

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
RIGHT, REFUSED, WRONG, UNTRIED = "right", "refused", "wrong", "not tried"


# Details of reasons that the page leaves out, so that classes with equal reasons are listed together.
_PLAIN = (
    (r"^it: (its class is not supported: )?", ""),
    (r"its experts \([\w.]+\) by", "its experts by"),
    (r"differs by \S+ from", "differs from"),
    (r"layer \d+ ", "a layer "),
    (r" \([\w.]+\), which is not computed", ", which is not computed"),
    (r"of more than text \(.*\)", "of more than text"),
    (r"no small model was made: (?!it is).*", "it needs sizes that the sweep does not know"),
    (r"its class cannot be made from it: KeyError.*", "a layer does not call attention by transformers' registry"),
)


@dataclass(frozen=True)
class Result:
    """The outcome for a class."""

    kind: str
    name: str
    outcome: str
    reason: str = ""


def attempt(kind: str) -> Result:
    """Try a class."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    name = names if isinstance(names, str) else names[0]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        try:
            theirs = saved(small_config(kind), Path(folder))
            ids = torch.randint(VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
            padding = theirs.config.pad_token_id
            ids[ids == padding] += 1  # some classes do not count it as a position
            wanted = logits_of(theirs, ids)
        except Exception as error:  # noqa: BLE001 (a class that needs sizes of its own is listed as such)
            return Result(kind, name, UNTRIED, f"no small model was made: {_first_line(error)}")
        try:
            source = Checkpoint(folder)
            if source.config.class_config:
                prove(source.config, "it")
            worst = _difference(source, ids, wanted)
            trace(source.config, "decode", ExportOptions())
        except LucidError as error:
            reason = _first_line(error).replace(f"{folder}/config.json: ", "").replace(folder, "the checkpoint")
            return Result(kind, name, REFUSED, reason.removeprefix(f"{name} is not supported: "))
        except Exception as error:  # noqa: BLE001 (neither right nor refused, and the others are tried all the same)
            return Result(kind, name, WRONG, f"{type(error).__name__}: {_first_line(error)}")
    if worst <= TOLERANCE:
        return Result(kind, name, RIGHT, f"{worst:.0e}")
    return Result(kind, name, WRONG, f"differs by {worst:.2g}")


def _difference(source: Checkpoint, ids: torch.Tensor, wanted: torch.Tensor) -> float:
    model = load_model(source, torch.float64)
    with torch.no_grad():
        whole = model(ids)[0]
        mask = torch.ones_like(ids)
        first, past = model(ids[:, :13], None, mask[:, :13])
        second, past = model(ids[:, 13:22], past, mask[:, :22])
        pieces = [first, second]
        for place in (22, 23):
            logits, past = model(ids[:, place : place + 1], past, mask[:, : place + 1], decode=True)
            pieces.append(logits)
    return max(float((x - wanted).norm() / wanted.norm()) for x in (whole, torch.cat(pieces, dim=1)))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def page(results: list[Result]) -> str:
    """Return docs/families.md."""
    git = ["git", "-C", str(PAGE.parent), "rev-parse", "--short=8", "HEAD"]
    commit = subprocess.run(git, capture_output=True, check=True, text=True).stdout.strip()
    count = {what: [item for item in results if item.outcome == what] for what in (RIGHT, REFUSED, WRONG, UNTRIED)}
    right = ", ".join(f"`{item.kind}`{' (ours)' if item.kind in BUILT_IN else ''}" for item in count[RIGHT])
    lines = [
        "# Every family of transformers",
        "",
        f"Made by `make test-families` on {datetime.date.today()}, at {commit}, with transformers "
        f"{transformers.__version__} and PyTorch {torch.__version__}. {len(results)} classes: **{len(count[RIGHT])} "
        f"right, {len(count[REFUSED])} refused, {len(count[WRONG]) or 'none'} wrong**; of {len(count[UNTRIED])} no "
        "small model was made.",
        "",
        f"Right: logits of a small random model equal those of transformers' eager attention in float64 within "
        f"{TOLERANCE:g}, in one pass and in chunks and single tokens, and the decode graph can be traced. Those with "
        "code of ours are marked.",
        "",
        f"Right: {right}.",
        "",
    ]
    for what in (REFUSED, WRONG, UNTRIED):
        if count[what]:
            lines += [f"## {what.capitalize()}", "", *_grouped(count[what]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _grouped(results: list[Result]) -> list[str]:
    """Return items of a list: a reason, and the families that it holds for."""
    groups: dict[str, list[str]] = {}
    for item in results:
        reason = item.reason.replace(item.name, "its class")
        for pattern, plain in _PLAIN:
            reason = re.sub(pattern, plain, reason)
        groups.setdefault(reason[:120], []).append(f"`{item.kind}`")
    return [
        f"- {reason.rstrip('.')}: {', '.join(kinds)}."
        for reason, kinds in sorted(groups.items(), key=lambda x: -len(x[1]))
    ]


def main(kinds: list[str]) -> int:
    """Try the named classes, or all and write the page; return 1 if any is wrong."""
    results = []
    for kind in kinds or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        results.append(attempt(kind))
        sys.stdout.write(f"{kind}: {results[-1].outcome} {results[-1].reason}\n")
        sys.stdout.flush()
    if not kinds:
        PAGE.write_text(page(results), encoding="utf-8")
    return int(any(item.outcome == WRONG for item in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
