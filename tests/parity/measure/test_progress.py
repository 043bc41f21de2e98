"""Counting calls."""

from lucid_deploy.parity.measure.progress import CallCounter


def test_a_meter_begins_at_nothing_done():
    seen = []
    meter = CallCounter(lambda *step: seen.append(step), "work", 2)
    meter.tick()
    meter.tick()
    assert seen == [("work", 0, 2), ("work", 1, 2), ("work", 2, 2)]


def test_nobody_needs_to_listen():
    CallCounter(None, "work", 1).tick()
