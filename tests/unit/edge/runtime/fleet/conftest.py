"""Tiny bundles that differ in their chat template, and a fleet to run them in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.bundles import Made, make_bundle
from tests.fakes.device import Device
from tests.fakes.gateway import FakeGateway, fake_gateway


@pytest.fixture(scope="session")
def forge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Makes bundles of one maker; ``key`` names another."""
    root = tmp_path_factory.mktemp("bundles")

    def make(tag: str, *, key: str = "key", **changes: Any) -> Made:
        out = root / f"{len(list(root.glob('*.maas')))}.maas"
        return make_bundle(tiny, out, key=root / key, tag=tag, **changes)

    return make


@pytest.fixture(scope="session")
def one(forge: Callable[..., Made]) -> Made:
    return forge("1", big_bytes=1 << 20)


@pytest.fixture(scope="session")
def two(forge: Callable[..., Made]) -> Made:
    return forge("22", big_bytes=1 << 20)


@pytest.fixture
def gateway(one: Made, two: Made) -> Iterator[FakeGateway]:
    with fake_gateway() as running:
        running.codes["code"] = None
        for made in (one, two):
            running.bundles[made.bundle_id] = made.path
        yield running


@pytest.fixture
def device(gateway: FakeGateway, tmp_path: Path) -> Iterator[Device]:
    """An enrolled device whose agent does not run yet."""
    made = Device(tmp_path / "device")
    done = made.cli("enrol", gateway.url, "--code", "code", "--name", "d")
    assert done.returncode == 0, done.stderr
    yield made
    made.client.close()
    if made.process is not None:
        made.kill()
