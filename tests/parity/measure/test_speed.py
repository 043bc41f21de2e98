"""A machine's rates."""

from dataclasses import astuple

from lucid_deploy.parity.measure.speed import measure_speed


def test_rates_are_those_of_a_computer():
    speed = measure_speed()
    assert all(rate > 1e6 for rate in astuple(speed))
    assert all(rate < 1e16 for rate in astuple(speed))
