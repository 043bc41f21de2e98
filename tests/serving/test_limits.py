"""What reading a body may cost."""

from __future__ import annotations

from tests.serving.reader_tools import limits


def test_memory_for_reading_grows_with_the_largest_body() -> None:
    assert limits(body_bytes=1000).reading_bytes == 256 << 20
    assert limits(body_bytes=4 << 20).reading_bytes == 256 << 20
    assert limits(body_bytes=64 << 20).reading_bytes == 4 << 30
