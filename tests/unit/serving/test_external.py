"""Leases of engines that somebody else runs."""

import aiohttp
import pytest

from maas.core.errors import MaasError
from maas.serving.external import publish_external
from maas.store.deployments import DeploymentRepository
from maas.store.replicas import ReplicaRepository
from maas.store.secrets import SecretBox
from maas.store.state import ensure_project
from tests.fakes.engine import fake_engine


@pytest.fixture
def publish(database, clock, tmp_path):
    """Probe an engine once; return the leases that live then."""
    replicas = ReplicaRepository(database, clock)
    deployments = DeploymentRepository(database, clock)
    project_id = ensure_project(database, clock)

    async def probe(deployment) -> tuple:
        async with aiohttp.ClientSession() as client:
            await publish_external(
                deployment,
                replicas=replicas,
                secrets=SecretBox(tmp_path),
                client=client,
                now=clock.now(),
                lease_ttl_s=5.0,
            )
        return replicas.live()

    def deploy(**options):
        return deployments.create(
            project_id=project_id, model_id="tiny", engine="external", options=options
        )

    probe.deploy = deploy
    probe.live = replicas.live
    return probe


@pytest.mark.parametrize(("options", "room"), [({}, 0), ({"max_num_seqs": 4}, 4)])
async def test_engine_that_answers_is_listed_with_the_room_that_was_said(publish, options, room):
    with fake_engine() as engine:
        (lease,) = await publish(publish.deploy(url=engine.url, **options))
    assert (lease.url, lease.engine_model, lease.max_num_seqs) == (engine.url, "tiny", room)


async def test_engine_that_answers_no_more_is_withdrawn_at_once(publish):
    with fake_engine() as engine:
        deployment = publish.deploy(url=engine.url)
        assert len(await publish(deployment)) == 1
    with pytest.raises(MaasError):
        await publish(deployment)
    assert publish.live() == ()
