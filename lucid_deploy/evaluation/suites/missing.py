"""What to say when data are neither here nor to be had."""

from __future__ import annotations

from lucid_deploy.errors import LucidError


def missing_data(what: str, place: str, origin: str, suite: str, cause: Exception | None = None) -> LucidError:
    """Return the error for data that cannot be read.

    Args:
        what: Which data, as the beginning of a sentence.
        place: Where in the directory of ``--data`` they would be.
        origin: Where they are published.
        suite: Of which suite.
        cause: Why they could not be had from there.
    """
    why = "" if cause is None else f" ({' '.join(str(cause).split())[:120]})"
    return LucidError(
        f"{what} are neither at {place} in the directory of --data nor to be had from {origin}{why}. Where there is "
        f"network, run: python examples/fetch_suites.py {suite} --output DIR; then add --data DIR."
    )
