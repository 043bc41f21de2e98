"""Counting calls."""

from lucid_deploy.parity.measure.progress import Meter


def test_a_meter_begins_at_nothing_done():
    seen = []
    meter = Meter(lambda *step: seen.append(step), "work", 2)
    meter.tick()
    meter.tick()
    assert seen == [("work", 0, 2), ("work", 1, 2), ("work", 2, 2)]


def test_nobody_needs_to_listen():
    Meter(None, "work", 1).tick()
