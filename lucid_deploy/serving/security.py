"""Access control: API keys and, for servers without keys on a loopback address, the allowed host names."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from pathlib import Path

from lucid_deploy.errors import LucidError


class ApiKeys(tuple[bytes, ...]):
    """The known keys as SHA-256 digests; if there are none, everyone may send requests."""

    __slots__ = ()

    def identify(self, authorization: str | None) -> str | None:
        """Return the digest of the key in an ``Authorization`` header, in hexadecimal; None if it has no known key.

        The result is empty if there are no keys. The time of the check reveals nothing about the keys.
        """
        if not self:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self]
        return digest.hex() if any(matches) and scheme.lower() == "bearer" else None


def cache_owner(key: str, salt: str) -> str:
    """Return the owner of a request's stored prefixes: a digest of its key and salt, empty if it has neither."""
    return hashlib.sha256(f"{key} {salt}".encode()).hexdigest() if key or salt else ""


def read_api_keys(path: str, option: str = "--api-key-file") -> ApiKeys:
    """Read a file with a key on each line or a comment after ``#``; LucidError if it is invalid or has no key."""
    keys = read_secrets(option, path)
    if not keys:
        raise LucidError(f"{option} {path} has no keys; write at least one, each on its own line.")
    return ApiKeys(tuple(hashlib.sha256(key.encode()).digest() for key in keys))


def read_secrets(option: str, path: str) -> list[str]:
    """Return the keys in a file, one per line; LucidError if unreadable, malformed or, on POSIX, readable by all."""
    file, where = Path(path), f"{option} {path}"
    try:
        mode, lines = file.stat().st_mode, file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LucidError(f"{where} cannot be read: {getattr(error, 'strerror', error)}.") from error
    if os.name == "posix" and mode & stat.S_IROTH:
        raise LucidError(f"{where} can be read by every user of this machine; run: chmod o-r {path}")
    secrets = {number: line for number, line in enumerate(map(str.strip, lines), 1) if line and line[0] != "#"}
    for number, secret in secrets.items():
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise LucidError(f"{where}, line {number}: a key is printable ASCII without spaces.")
    return list(secrets.values())


def is_loopback(host: str) -> bool:
    """Return whether an address or name means this machine only."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_allowed(header: str | None, names: frozenset[str]) -> bool:
    """Return whether a ``Host`` header is missing or has a loopback name or one of ``names``, against DNS rebinding."""
    if header is None:
        return True  # HTTP/1.0, which browsers do not use
    name = header.strip().lower()
    name = name[: name.rindex(":")] if ":" in name and not name.endswith("]") else name
    return is_loopback(name) or name in names
