"""Joining a Ray cluster or starting one, and how much Ray itself writes to the terminal."""

from __future__ import annotations

import logging
import os
import signal
import socket
from typing import Any

import ray

from lucid_deploy.errors import LucidError

OBJECT_STORE_BYTES = 100 << 20  # tokens and texts are small and do not go through it
# Seconds that Ray Serve waits for an HTTP proxy to start, before it kills it and starts another one: its own 5 are too
# few on a busy machine, where no proxy then ever starts. `serve.start` gives up after 60.
PROXY_PATIENCE = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
LISTENING_SECONDS = 30.0  # in which the listener must take a connection, and say a word of HTTP/2
# What a client of HTTP/2 says first, with empty settings; a server, such as Ray's under gRPC, answers with its own.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4  # the type of a frame, its fourth byte
# Ray's own remarks are one step less welcome than ours: its warnings come with our information, nothing with --quiet.
_RAYS_LEVEL = {"debug": logging.INFO, "info": logging.WARNING}


def connect(address: str | None, log_level: str) -> None:
    """Join a Ray cluster, or start one on this machine. Signals that come meanwhile are left to their handlers.

    Args:
        address: As ``ray.init`` takes it; None: start one.
        log_level: Least important message of ours to log; Ray's own are warnings then, or errors.

    Raises:
        LucidError: There is none at the address, or this machine takes longer to start one than Ray waits.
    """
    level = _RAYS_LEVEL.get(log_level, logging.ERROR)
    logging.getLogger("ray.serve").setLevel(level)
    here: dict[str, Any] = {"address": address}
    if address is None:
        here = {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
        os.environ.setdefault(*PROXY_PATIENCE)  # for the cluster's processes, which get this one's environment
    else:
        check_listening(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**here, log_to_driver=False, logging_level=level, configure_logging=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise LucidError(f"No Ray cluster at {address or 'this machine'}: {error}") from error
    except SystemExit as error:  # Ray has put a handler in place that ends with the signal's number
        raise SystemExit(128 + signal.SIGTERM if error.code == signal.SIGTERM else error.code) from error
    except Exception as error:
        if "timed out during startup" not in str(error):  # which Ray has no class for
            raise
        raise LucidError(
            f"Ray did not start within the time that it gives itself: {error} Try again when this machine is less busy."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def check_listening(address: str) -> None:
    """Check that somebody listens who may be Ray, which itself tries for minutes and heeds no signal meanwhile.

    Args:
        address: ``HOST:PORT``, also behind ``ray://``. Others, such as ``auto``, are left to Ray.

    Raises:
        LucidError: Nobody listens there, or somebody who speaks another protocol.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    wrong = f"No Ray cluster at {address}"
    remedy = "Check --ray-address; ray status on its head node shows whether it runs."
    try:
        with socket.create_connection((host.strip("[]"), int(port)), LISTENING_SECONDS) as opened:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
                return
            opened.sendall(_PREFACE)
            answer = opened.recv(9)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise LucidError(f"{wrong}: {reason}. {remedy}") from error
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise LucidError(f"{wrong}: who listens there does not speak Ray's protocol. {remedy}")
