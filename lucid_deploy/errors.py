"""The errors a user can cause. Everything else that is raised is a bug of ours and keeps its traceback."""

from __future__ import annotations


class LucidError(Exception):
    """Bad usage or bad input: says what is wrong, where, and what to do. The command line exits with 2."""

    exit_code = 2


class CheckFailed(LucidError):
    """A check gave a negative answer (parity, a corrupted artifact). The command line exits with 1."""

    exit_code = 1


def missing_extra(package: str, extra: str, purpose: str) -> LucidError:
    """Return the error for an optional package that is not installed.

    Args:
        package: Import name of the package, such as ``onnxruntime``.
        extra: The extra of lucid-deploy that brings it, such as ``cpu``.
        purpose: What it is needed for, as the end of "… is needed to …".
    """
    return missing_package(package, f"lucid-deploy[{extra}]", purpose)


def missing_package(package: str, install: str, purpose: str) -> LucidError:
    """As :func:`missing_extra`, for a package that comes with no extra: ``install`` is what pip installs."""
    return LucidError(
        f'The package {package} is needed to {purpose} and is not installed. Run: pip install "{install}"'
    )
