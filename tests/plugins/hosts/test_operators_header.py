"""The C++ header of the table of operators."""

from __future__ import annotations

from lucid_deploy.plugins.hosts.operators_header import HEADER, header_text


def test_the_header_is_up_to_date() -> None:
    assert HEADER.read_text() == header_text(), "run: python -m lucid_deploy.plugins.hosts.operators_header"
