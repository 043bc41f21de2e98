"""Which installed distributions an import name comes from, without taking the records of all others apart."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from importlib.metadata import Distribution


@functools.cache
def distributions_of(*packages: str) -> dict[str, list[str]]:
    """Return the names of the distributions that hold packages: what ``packages_distributions`` says of these.

    That function takes every installed file's name apart, which costs several tenths of a second where some hundred
    distributions are installed.

    Args:
        packages: Top-level import names.

    Returns:
        For each package the distributions, each once, in the order in which Python finds them; none if it is not
        installed. An editable installation, for one, is found in the checkout as well.
    """
    found: dict[str, list[str]] = {package: [] for package in packages}
    files = {package: re.compile(rf'^"?{re.escape(package)}(?:/.*)?\.py"?,', re.MULTILINE) for package in packages}
    for item in importlib.metadata.distributions():
        for package in _held(item, files):
            if item.metadata["Name"] not in found[package]:
                found[package].append(item.metadata["Name"])
    return found


def _held(distribution: Distribution, files: dict[str, re.Pattern[str]]) -> list[str]:
    """Return which packages a distribution declares or, if it declares none, has files of."""
    declared = (distribution.read_text("top_level.txt") or "").split()
    if declared:
        return [package for package in files if package in declared]
    record = distribution.read_text("RECORD") or ""
    return [package for package, lines in files.items() if lines.search(record)]
