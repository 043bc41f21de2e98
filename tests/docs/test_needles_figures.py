"""What the texts say of the pairs trained on needles is what their file of results says, for each seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def seeds(task: str, length: int, attention: str) -> str:
    """The right answers of 100 of each seed, as prose lists them."""
    cells = json.loads((ROOT / "benchmarks/results/needles.json").read_text())["cells"]
    [cell] = [cell for cell in cells if (cell["task"], cell["length"]) == (task, length)]
    *first, last = (str(pair[attention]["right"]) for pair in cell["pairs"])
    return f"{', '.join(first)} and {last}"


def prose(path: str) -> str:
    return re.sub(r"\s+", " ", (ROOT / path).read_text())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("CHANGELOG.md", f"LUCID follows {seeds('variables', 512, 'lucid')} of 100 variables, standard attention"),
        ("CHANGELOG.md", f"standard attention {seeds('variables', 512, 'standard')}."),
        ("CHANGELOG.md", f"LUCID finds {seeds('multi-key', 1024, 'lucid')} of 100 needles among needles"),
        ("CHANGELOG.md", f"standard attention {seeds('multi-key', 1024, 'standard')}."),
        ("docs/quality.md", f"where standard attention has {seeds('variables', 256, 'standard')}."),
        ("docs/quality.md", f"multi-key at 1024 tokens {seeds('multi-key', 1024, 'lucid')} of 100, standard attention"),
        ("docs/quality.md", f"standard attention {seeds('multi-key', 1024, 'standard')}."),
    ],
)
def test_the_figures_of_each_seed_are_those_of_the_file(path: str, said: str) -> None:
    assert said in prose(path)
