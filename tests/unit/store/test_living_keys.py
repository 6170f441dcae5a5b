"""Keys read again and again: what has not changed is taken over, and whatever has is not."""

import pytest

from maas.store.device_groups import GroupRepository, NewGroup
from maas.store.devices import DeviceRepository
from maas.store.enrolment import Applicant, EnrolmentRepository
from maas.store.key_terms import KeyTerms
from maas.store.keys import KeyRepository
from maas.store.secrets import Sealing
from maas.store.state import StateReader, ensure_project


@pytest.fixture
def project_id(database, clock):
    return ensure_project(database, clock)


@pytest.fixture
def keys(database, clock):
    return KeyRepository(database, clock)


@pytest.fixture
def living(database, clock):
    reader = StateReader(database, clock)
    return lambda: {key.id: key for key in reader.read().keys}


def test_records_are_those_of_the_store(keys, living, project_id, clock):
    terms = KeyTerms(
        scopes=("inference",),
        models=("m", "n"),
        endpoints=("/v1/embeddings",),
        networks=("10.0.0.0/8",),
        expires_at=clock.now() + 9,
    )
    made, _ = keys.create(project_id=project_id, name="k", terms=terms)
    plain, _ = keys.create(project_id=project_id, name='"quoted"')
    assert living() == {made.id: made, plain.id: plain}
    assert made.models == ("m", "n")


def test_key_that_is_as_it_was_is_taken_over(keys, living, project_id):
    made, _ = keys.create(project_id=project_id, name="k")
    first = living()[made.id]
    newer, _ = keys.create(project_id=project_id, name="newer")
    after = living()
    assert after[made.id] is first
    assert after[newer.id] == newer


def test_key_that_was_revoked_or_rotated_is_another_or_none(keys, living, project_id, clock):
    made, _ = keys.create(project_id=project_id, name="k")
    gone, _ = keys.create(project_id=project_id, name="gone")
    living()
    keys.revoke(gone.id)
    newer, _ = keys.rotate(made.id, overlap_s=60)
    after = living()
    assert set(after) == {made.id, newer.id}
    assert (after[made.id].expires_at, after[made.id].replaced_by) == (clock.now() + 60, newer.id)


def test_key_of_a_device_follows_its_group_and_ends_with_it(database, clock, living, project_id):
    groups = GroupRepository(database, clock)
    groups.create(project_id, NewGroup("shops", fallback_model="m"), {})
    enrolment = EnrolmentRepository(database, clock, Sealing(str, str))
    _, code = enrolment.create(project_id, group="shops", name=None, lifetime_s=60, labels={})
    device = enrolment.enrol(Applicant(code, "n" * 32))
    (key,) = living().values()
    assert key.models == ("m",)
    groups.modify(project_id, "shops", {"fallback_model": None})
    assert living()[key.id].models == ()
    DeviceRepository(database, clock).retire(project_id, device.device_id)
    assert living() == {}
