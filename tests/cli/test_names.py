"""Names of options, for the environment, for files, and for hints."""

from __future__ import annotations

import click
import pytest

from lucid_deploy.cli._names import in_capitals, long_name, near


@pytest.mark.parametrize(
    ("spellings", "name", "variable"),
    [
        (["-n", "--max-new-tokens"], "--max-new-tokens", "MAX_NEW_TOKENS"),
        (["--json", "json_target"], "--json", "JSON"),
        (["--cache-tokens", "--tokens", "count"], "--cache-tokens", "CACHE_TOKENS"),
    ],
)
def test_the_longest_spelling_counts(spellings: list[str], name: str, variable: str) -> None:
    assert long_name(click.Option(spellings)) == name
    assert in_capitals(name) == variable


def test_a_hint_names_what_is_near_or_says_nothing() -> None:
    assert near("dtpye", ["output", "dtype"]) == " Did you mean dtype?"
    assert near("zzz", ["output", "dtype"]) == near("zzz", ()) == ""
