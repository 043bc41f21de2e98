"""Who may ask: API keys, and names under which a server without keys answers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from pathlib import Path

from lucid_deploy.errors import LucidError

MOST_KEYS = 10_000


class ApiKeys:
    """Keys that are known, as digests: the keys themselves are not kept.

    Args:
        digests: SHA-256 of each key. None of them: everyone may ask.
    """

    def __init__(self, digests: tuple[bytes, ...] = ()) -> None:
        self.digests = digests

    def __bool__(self) -> bool:
        return bool(self.digests)

    def identify(self, authorization: str | None) -> str | None:
        """Return the name of the key in an ``Authorization`` header; None if it is none of these.

        The name is the digest in hexadecimal, or empty where everyone may ask. The time that it takes tells nothing
        about the keys.
        """
        if not self.digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = False
        for known in self.digests:
            found |= hmac.compare_digest(digest, known)
        return digest.hex() if found and scheme.lower() == "bearer" else None


NO_KEYS = ApiKeys()


def cache_owner(key: str, salt: str) -> str:
    """Return who owns the prefixes that a request stores: requests with the same key and the same salt.

    Args:
        key: As :meth:`ApiKeys.identify`; empty to share among keys.
    """
    return hashlib.sha256(f"{key} {salt}".encode()).hexdigest() if key or salt else ""


def read_api_keys(path: str, option: str = "--api-key-file") -> ApiKeys:
    """Read a file of keys: one a line, ``#`` begins a comment line, empty lines are skipped.

    Raises:
        LucidError: It cannot be read, everyone may read it, it has no keys, or a line is not a key.
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise LucidError(f"{option} {path} is not a file.")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LucidError(f"{option} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise LucidError(f"{option} {path} is not text in UTF-8.") from error
    if os.name == "posix" and mode & stat.S_IROTH:
        raise LucidError(f"{option} {path} can be read by every user of this machine; run: chmod o-r {path}")
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not key.isascii() or not key.isprintable() or " " in key:
            raise LucidError(f"{option} {path}, line {number}: a key is printable ASCII without blanks.")
        keys.append(key)
    if not keys:
        raise LucidError(f"{option} {path} has no keys: write one a line.")
    if len(keys) > MOST_KEYS:
        raise LucidError(f"{option} {path} has {len(keys)} keys; at most {MOST_KEYS} are taken.")
    return ApiKeys(tuple(hashlib.sha256(key.encode()).digest() for key in keys))


def is_loopback(host: str) -> bool:
    """Say whether an address or name means this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_allowed(header: str | None, names: frozenset[str]) -> bool:
    """Say whether a ``Host`` header names this machine or one of the names.

    A web page can make its own name resolve to 127.0.0.1 and then read what a local server without keys answers; the
    header still has the page's name.
    """
    if header is None:
        return True  # HTTP/1.0; no browser
    name = header.strip().lower()
    name = name[: name.rindex(":")] if ":" in name and not name.endswith("]") else name
    return is_loopback(name) or name in names
