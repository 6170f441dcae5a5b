"""An agent that is killed at any moment of an update answers at its next start, and goes on."""

import random
import time
from collections.abc import Callable

import pytest

from maas.edge.runtime.shelf.shelf import Shelf
from tests.fakes.bundles import Made
from tests.fakes.device import Device
from tests.fakes.gateway import FakeGateway


@pytest.fixture
def bundles(one: Made, two: Made, forge: Callable[..., Made], gateway: FakeGateway) -> list[Made]:
    """Three: a device keeps two, so that there is always something to fetch."""
    three = forge("333", big_bytes=1 << 20)
    gateway.bundles[three.bundle_id] = three.path
    return [one, two, three]


def power_cuts(
    device: Device, gateway: FakeGateway, bundles: list[Made], num_kills: int
) -> list[bool]:
    """Kill updates at random moments; return which of them had switched to the new bundle."""
    gateway.want(bundles[0].bundle_id)
    device.start()
    gateway.wait(lambda: gateway.reports("succeeded"), "the first bundle")
    gateway.chunk_delay_s = 0.03
    started = time.monotonic()
    gateway.want(bundles[1].bundle_id, 1)
    gateway.wait(lambda: gateway.reports("succeeded", bundles[1].bundle_id), "an update")
    whole_s = time.monotonic() - started
    source = random.Random(7)
    switched: list[bool] = []
    for attempt in range(2, num_kills + 2):
        old = device.num_prompt_tokens()
        place = next(i for i, made in enumerate(bundles) if made.num_prompt_tokens == old)
        new = bundles[(place + 1) % len(bundles)]
        gateway.want(new.bundle_id, attempt)
        time.sleep(whole_s * source.uniform(0.02, 1.1))
        device.kill()
        # Offline, so that what answers is what the power cut left.
        gateway.stop()
        device.start()
        answered = device.wait_answer()
        assert answered in {old, new.num_prompt_tokens}
        switched.append(answered == new.num_prompt_tokens)
        shelf = Shelf(device.home)
        current = shelf.current()
        assert current is not None
        shelf.verify(current)
        gateway.start()
    # What is tried again works, whatever was left behind.
    gateway.want(new.bundle_id, num_kills + 2)
    device.wait(lambda: device.num_prompt_tokens() == new.num_prompt_tokens, "a last update")
    return switched


def test_an_update_survives_power_cuts(device, gateway, bundles):
    assert len(power_cuts(device, gateway, bundles, 3)) == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_update_survives_twenty_power_cuts(device, gateway, bundles):
    switched = power_cuts(device, gateway, bundles, 24)
    assert len(switched) == 24
    assert 0 < sum(switched) < 24
