"""API keys, names of hosts, and owners of stored prefixes."""

from __future__ import annotations

import hashlib

from lucid_deploy.serving.security import ApiKeys, cache_owner, host_allowed, is_loopback


def test_loopback_and_named_hosts_are_allowed() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "LOCALHOST"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.example", ""]))
    names = frozenset({"a.example"})
    assert host_allowed("A.example:80", names) and host_allowed("[::1]", names) and host_allowed(None, names)
    assert not host_allowed("b.example", names) and not host_allowed("", names)


def test_without_keys_everyone_may_send_requests() -> None:
    assert ApiKeys().identify(None) == ""
    assert ApiKeys((b"x" * 32,)).identify(None) is None


def test_a_key_is_identified_by_its_digest() -> None:
    digests = tuple(hashlib.sha256(key).digest() for key in (b"one", b"two"))
    keys = ApiKeys(digests)
    assert [keys.identify(f"Bearer {key}") for key in ("one", "two")] == [digest.hex() for digest in digests]
    assert keys.identify("bearer  one ") == digests[0].hex()
    for wrong in ("one", "Basic one", "Bearer three", "Bearer", "Bearer \udcff"):
        assert keys.identify(wrong) is None


def test_prefixes_belong_to_a_key_with_a_salt() -> None:
    owners = {cache_owner(key, salt) for key in ("", "a", "b", "a b") for salt in ("", "x", "b x")}
    assert len(owners) == 12 - 1  # keys are hexadecimal: "a" with "b x" and "a b" with "x" do not both exist
    assert cache_owner("", "") == ""
    assert "a" * 64 not in cache_owner("a" * 64, "salt")
