"""Reader processes: bodies that take too much time or memory or crash the process, and clients that leave."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.fields import Kind
from lucid_deploy.serving.readers import ReaderPool, reader_process
from lucid_deploy.serving.requests import ReaderSetup
from tests.serving.reader_tools import PANIC, chat, completion, write_setup


def with_pool(setup: ReaderSetup, test: Callable[[ReaderPool], Awaitable[None]], count: int = 1) -> None:
    """Run a test on a pool of readers, and check that the pool can still read afterwards."""

    async def run() -> None:
        pool = ReaderPool(setup, count)
        await asyncio.to_thread(pool.start)
        try:
            await test(pool)
            assert (await pool.read(completion("w5"), "completion")).prompts == ((5,),)
        finally:
            await asyncio.to_thread(pool.close)

    asyncio.run(run())


def pids(pool: ReaderPool) -> list[int | None]:
    return [reader._process.pid for reader in pool._readers]


async def refusal(pool: ReaderPool, body: bytes, kind: Kind = "chat") -> ApiError:
    with pytest.raises(ApiError) as caught:
        await pool.read(body, kind)
    return caught.value


def test_an_endless_template_is_refused(tmp_path: Path) -> None:
    async def test(pool: ReaderPool) -> None:
        error = await refusal(pool, chat("endless"))
        assert (error.status, error.code) == (400, "too_costly")
        assert "took more than 0.4 s of processor time" in error.message
        assert (await pool.read(chat("w2"), "chat")).prompts == ((1, 2),)

    with_pool(write_setup(tmp_path), test)


def test_code_that_cannot_be_interrupted_costs_only_its_process(tmp_path: Path) -> None:
    async def test(pool: ReaderPool) -> None:
        before = pids(pool)
        error = await refusal(pool, completion("a" * 500_000), "completion")
        assert (error.status, error.code) == (400, "too_costly")
        assert "took more than 0.4 s of processor time" in error.message  # and not a minute by the clock
        assert (await pool.read(completion("w1"), "completion")).prompts == ((1,),)
        assert pids(pool) != before

    with_pool(write_setup(tmp_path, rule="a.*b"), test)


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="memory is bounded on Linux")
@pytest.mark.parametrize(
    "template", ["{{ 'x' * 10 ** 10 }}", "{% for i in range(100000) %}{{ 'x' * 10 ** 6 }}{% endfor %}"]
)
def test_a_template_that_takes_all_memory_is_refused(template: str, tmp_path: Path) -> None:
    async def test(pool: ReaderPool) -> None:
        error = await refusal(pool, chat("w1"))
        assert (error.status, error.code) == (400, "too_costly")
        assert "needed more than 256 MiB of memory" in error.message

    with_pool(write_setup(tmp_path, template, reading_seconds=20.0), test)


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="memory is bounded on Linux")
def test_the_largest_body_of_the_worst_kind_fits_and_a_larger_one_does_not(tmp_path: Path) -> None:
    worst = b'{"model": "m", "prompt": [' + b"[]," * ((4 << 20) // 3) + b"[]]}"

    async def test(pool: ReaderPool) -> None:
        error = await refusal(pool, worst, "completion")
        assert error.code == "invalid_value" and "this server takes at most 8" in error.message
        error = await refusal(pool, worst * 4, "completion")  # too large, and invalid JSON, as parsing shows
        assert error.code in ("too_costly", "invalid_json")

    with_pool(write_setup(tmp_path, reading_seconds=20.0), test)


def test_a_tokenizer_that_panics_refuses_the_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def test(pool: ReaderPool) -> None:
        error = await refusal(pool, completion("a" * 40 + "b"), "completion")
        assert (error.status, error.param, error.code) == (400, "prompt", "tokenizer_failed")

    with_pool(write_setup(tmp_path, rule=PANIC), test)
    assert "panicked" not in capfd.readouterr().err


def test_a_request_nobody_waits_for_leaves_the_queue_or_the_reader(tmp_path: Path) -> None:
    async def test(pool: ReaderPool) -> None:
        before = pids(pool)
        running = asyncio.ensure_future(pool.read(chat("endless"), "chat"))
        queued = [asyncio.ensure_future(pool.read(chat("endless"), "chat")) for _ in range(50)]
        await asyncio.sleep(0.1)
        for task in [running, *queued]:
            task.cancel()
        await asyncio.wait([running, *queued])
        assert (await pool.read(chat("w2"), "chat")).prompts == ((1, 2),)  # at once, not after 51 times 60 s
        assert pids(pool) != before

    with_pool(write_setup(tmp_path, reading_seconds=60.0), test)


def test_costly_bodies_leave_a_reader_to_others(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{"user": "x" * (64 << 10)}, {"tools": []}, {"bad_words": []}, {"guided_regex": None}]

    async def test(pool: ReaderPool) -> None:
        large = [asyncio.ensure_future(pool.read(chat("endless", **kind), "chat")) for kind in kinds]
        await asyncio.sleep(0.2)
        assert (await pool.read(completion("w1"), "completion")).prompts == ((1,),)
        assert not any(task.done() for task in large)
        large[0].cancel()  # its client leaves, and its reader is not free yet
        await asyncio.sleep(0.5)
        assert not large[0].done() and pool._idle.qsize() == 1
        assert (await pool.read(completion("w1"), "completion")).prompts == ((1,),)
        for task in large:
            task.cancel()
        await asyncio.wait(large)

    with_pool(write_setup(tmp_path, reading_seconds=60.0), test, count=2)


def test_clients_take_turns(tmp_path: Path) -> None:
    async def test(pool: ReaderPool) -> None:
        slow = [asyncio.ensure_future(pool.read(chat("endless"), "chat", "a")) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert (await pool.read(completion("w1"), "completion", "b")).prompts == ((1,),)
        assert sum(task.done() for task in slow) <= 2
        await asyncio.wait(slow)

    with_pool(write_setup(tmp_path), test)


def test_a_killed_reader_is_replaced(tmp_path: Path) -> None:
    async def test(pool: ReaderPool) -> None:
        task = asyncio.ensure_future(pool.read(chat("endless"), "chat"))
        await asyncio.sleep(0.1)
        os.kill(pids(pool)[0] or 0, signal.SIGKILL)
        with pytest.raises(ApiError, match="was killed") as raised:
            await task
        assert (raised.value.status, raised.value.headers["Retry-After"]) == (503, "5")
        assert (await pool.read(chat("w2"), "chat")).prompts == ((1, 2),)

    with_pool(write_setup(tmp_path, reading_seconds=60.0), test)


def test_readers_ignore_signals_to_the_whole_group(tmp_path: Path) -> None:
    """A terminal signals the whole group; readers ignore that, so requests being read are still answered."""

    async def test(pool: ReaderPool) -> None:
        before = pids(pool)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for pid in before:
                os.kill(pid or 0, number)
            await asyncio.sleep(0.1)
            assert (await pool.read(chat("w2"), "chat")).prompts == ((1, 2),)
            assert pids(pool) == before

    with_pool(write_setup(tmp_path), test)


def test_an_invalid_template_is_refused_at_the_start(tmp_path: Path) -> None:
    """The template is compiled in the reader too, within its limits: compiling evaluates constant expressions."""
    with pytest.raises(LucidError, match="is not valid"), reader_process(write_setup(tmp_path, "{% for")) as reader:
        reader.start()
    with reader_process(write_setup(tmp_path, None)) as reader:
        reader.start()
