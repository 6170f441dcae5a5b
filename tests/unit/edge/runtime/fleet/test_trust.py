"""Whose bundles an enrolled device takes: its gateway's from the first one on, and no others."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maas.edge.runtime.bundle.archive import verify
from tests.fakes.bundles import Made
from tests.fakes.device import Device
from tests.fakes.gateway import FakeGateway


@pytest.fixture
def theirs(forge: Callable[..., Made], gateway: FakeGateway) -> Made:
    """A bundle of another maker, which the gateway hands out."""
    made = forge("theirs", key="other")
    gateway.bundles[made.bundle_id] = made.path
    return made


@pytest.fixture
def enrol(gateway: FakeGateway, tmp_path: Path) -> Iterator[Callable[[str | None], Device]]:
    """Enrols a device at a gateway that tells a key, and starts its agent."""
    device = Device(tmp_path / "device")

    def make(public_key: str | None) -> Device:
        gateway.bundle_public_key = public_key
        assert device.cli("enrol", gateway.url, "--code", "code").returncode == 0
        device.start("--no-cloud")
        return device

    yield make
    device.client.close()
    device.kill()


def test_a_first_bundle_of_another_key_is_refused_and_the_device_goes_on(
    gateway: FakeGateway, enrol: Callable[[str | None], Device], one: Made, theirs: Made
) -> None:
    gateway.want(theirs.bundle_id)
    device = enrol(verify(one.path, None).public_key)
    (refused,) = gateway.wait(lambda: gateway.reports("failed", theirs.bundle_id), "a refusal")
    assert refused["phase"] == "verify"
    assert "a key nobody here trusts" in refused["error"]
    assert device.chat().status_code == 503
    assert list((device.home / "bundles").iterdir()) == []
    gateway.want(one.bundle_id)
    gateway.wait(lambda: gateway.reports("succeeded", one.bundle_id), "the first bundle")
    assert device.num_prompt_tokens() == one.num_prompt_tokens
    # What it has goes on answering when the other one is wanted again.
    gateway.heartbeats.clear()
    gateway.want(theirs.bundle_id, 1)
    gateway.wait(lambda: gateway.reports("failed", theirs.bundle_id), "a refusal")
    assert device.num_prompt_tokens() == one.num_prompt_tokens


def test_at_a_gateway_of_before_the_first_key_is_trusted_as_ever(
    gateway: FakeGateway, enrol: Callable[[str | None], Device], one: Made, theirs: Made
) -> None:
    gateway.want(theirs.bundle_id)
    device = enrol(None)
    gateway.wait(lambda: gateway.reports("succeeded", theirs.bundle_id), "the first bundle")
    gateway.want(one.bundle_id)
    gateway.wait(lambda: gateway.reports("failed", one.bundle_id), "a refusal")
    assert device.num_prompt_tokens() == theirs.num_prompt_tokens
