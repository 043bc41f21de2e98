"""Who may ask."""

from __future__ import annotations

from lucid_deploy.serving.security import ApiKeys, host_allowed, is_loopback


def test_hosts() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "LOCALHOST"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.example", ""]))
    names = frozenset({"a.example"})
    assert host_allowed("A.example:80", names) and host_allowed("[::1]", names) and host_allowed(None, names)
    assert not host_allowed("b.example", names) and not host_allowed("", names)


def test_no_keys_let_everyone_in() -> None:
    assert ApiKeys().allow(None)
    assert not ApiKeys((b"x" * 32,)).allow(None)
