"""Draining: until nothing is held, never longer than the limit, and blind engines get it all."""

import time

from maas.serving.drain import drain


def _engine(*held):
    """Return a look at an engine that holds so many requests, the last number for ever."""
    left = list(held)

    async def look():
        return left.pop(0) if len(left) > 1 else left[0]

    return look


async def _seconds(look, *, reports_load=True, timeout_s=2.0) -> float:
    started = time.monotonic()
    await drain(look, reports_load=reports_load, timeout_s=timeout_s, routes_change_s=0.0)
    return time.monotonic() - started


async def test_idle_engine_is_drained_at_once():
    assert await _seconds(_engine(0)) < 0.2


async def test_running_requests_are_waited_for():
    assert 0.4 <= await _seconds(_engine(2, 1, 0)) < 1.5


async def test_wait_ends_at_its_limit():
    assert 0.5 <= await _seconds(_engine(1), timeout_s=0.5) < 1.5


async def test_engine_that_cannot_tell_gets_the_whole_time():
    assert 0.5 <= await _seconds(_engine(0), reports_load=False, timeout_s=0.5) < 1.5


async def test_broken_engine_is_not_waited_for():
    assert await _seconds(_engine(None), reports_load=False) < 0.2


async def test_requests_that_gateways_still_send_are_not_missed():
    started = time.monotonic()
    await drain(_engine(0), reports_load=True, timeout_s=2.0, routes_change_s=0.3)
    assert time.monotonic() - started >= 0.3
