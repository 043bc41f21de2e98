"""Taking in a request's body: bounded in size, time, and memory over all requests."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from lucid_deploy.serving.errors import ApiError, ClientGone, unavailable
from lucid_deploy.serving.limits import Limits

BODY_SECONDS = 30.0  # for a body to arrive
FREE_BYTES = 64 << 10  # of each body that do not count: small requests get in whatever large ones hold
BODIES = 16  # as many of the largest bodies may be in memory at once


class BodyMemory:
    """The bytes of bodies that are in memory, over all requests: received, and not yet read.

    Args:
        most: Bytes, beyond the first :data:`FREE_BYTES` of each.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    @contextmanager
    def share(self) -> Iterator[BodyShare]:
        """Hold memory for one body."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            share.grow(0)


class BodyShare:
    """The memory of one body."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._taken = 0

    def grow(self, size: int) -> None:
        """Hold memory for so many bytes of the body, instead of those before.

        Raises:
            ApiError: Other bodies hold it.
        """
        more = max(0, size - FREE_BYTES) - self._taken
        if more > 0 and self._memory.taken + more > self._memory.most:
            raise unavailable("Too many large requests are being read at once. Send it again.", "too_many_bodies")
        self._taken += more
        self._memory.taken += more


def check_head(request: Request, limits: Limits) -> None:
    """Refuse a body by what the headers say of it.

    Raises:
        ApiError: It is of another type, packed, or too large.
    """
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    if kind.strip() != "application/json":  # a web page cannot send this type to another site without asking first
        raise _unsupported("Send the body as Content-Type: application/json.")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]*)", parameters)
    if charset is not None and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise _unsupported("Send the body in UTF-8, as JSON is, and not in another charset.")
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise _unsupported("Send the body as it is, without Content-Encoding: this server unpacks nothing.")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > limits.body_bytes:
        raise too_large(limits)


async def read_body(request: Request, limits: Limits, started: float, share: BodyShare) -> bytes:
    """Return the body, whatever its headers say of its size.

    Raises:
        ApiError: It is too large or too slow, or there is no memory for it.
        ClientGone: The client closed the connection.
    """
    check_head(request, limits)
    left = min(BODY_SECONDS, limits.seconds) - (time.perf_counter() - started)
    try:
        async with asyncio.timeout(max(0.0, left)):
            return await _receive(request, limits, share)
    except TimeoutError as error:
        raise ApiError(408, "The body did not arrive in time.", "timeout") from error


async def _receive(request: Request, limits: Limits, share: BodyShare) -> bytes:
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        if len(body) + len(part) > limits.body_bytes:
            raise too_large(limits)
        share.grow(len(body) + len(part))
        body += part
        if not message.get("more_body", False):
            return bytes(body)


def _unsupported(message: str) -> ApiError:
    return ApiError(415, message, "unsupported_media_type")


def too_large(limits: Limits) -> ApiError:
    """Return the 413."""
    return ApiError(413, f"The body is larger than {limits.body_bytes} bytes.", "body_too_large")
