"""The page of supported models says what the tables of families say."""

from __future__ import annotations

from pathlib import Path

from lucid_deploy.model.families import BUILT_IN, family_named

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_list_of_families_is_that_of_the_code() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    for name in BUILT_IN:
        family = family_named(name)
        keys = ", ".join(f"`{key}`" for key in family.keys.__struct_fields__)
        classes = ", ".join(f"`{item}`" for item in family.architectures)
        end = f" Keys: {keys}." if keys else " - `"
        assert f"- `{name}`, {classes}: {family.about}.{end}" in page
