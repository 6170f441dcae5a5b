"""What keys may do is worked out once: again only for keys, and rules, that changed."""

import pytest

from maas.gateway.relay.key_access import key_access
from maas.store.key_terms import KeyTerms
from maas.store.projects import ProjectChange
from maas.store.records import Role
from maas.store.state import StateReader
from maas.store.tenancy import open_tenancy


@pytest.fixture
def tenancy(database, clock):
    return open_tenancy(database, clock)


@pytest.fixture
def organization(tenancy):
    return tenancy.organizations.create("acme")


@pytest.fixture
def project(tenancy, organization):
    return tenancy.projects.create(organization.id, "p")


@pytest.fixture
def user(tenancy, organization, project):
    made = tenancy.users.create(organization.id, email="a@b", name="a", role=Role.DEVELOPER)
    tenancy.users.add_member(project.id, made.id, Role.OWNER)
    return made


@pytest.fixture
def key(tenancy, project, user):
    terms = KeyTerms(user_id=user.id)
    return tenancy.keys.create(project_id=project.id, name="k", terms=terms)[0]


@pytest.fixture
def read(database, clock):
    """Return what keys may do now, by what was known the last time."""
    reader, known = StateReader(database, clock), []

    def once():
        state = reader.read()
        access, known_of = known.pop() if known else (None, None)
        known.append((key_access(state, access, known_of), state))
        assert known[0][0] == key_access(state), "as if nothing had been known"
        return known[0][0]

    return once


def test_another_key_leaves_it_as_it_was(tenancy, project, key, read):
    first = read()[key.id]
    newer, _ = tenancy.keys.create(project_id=project.id, name="newer")
    after = read()
    assert after[key.id] is first
    assert after[newer.id].may_infer


def test_role_of_its_owner_is_heeded_at_once(tenancy, project, user, key, read):
    assert read()[key.id].may_infer
    tenancy.users.modify_member(project.id, user.id, Role.VIEWER)
    assert not read()[key.id].may_infer
    tenancy.users.modify(user.organization_id, user.id, Role.OWNER)
    assert read()[key.id].may_infer


def test_archived_project_is_heeded_at_once(tenancy, project, key, read):
    assert read()[key.id].withdrawn is None
    tenancy.projects.archive(project.id)
    assert "archived" in str(read()[key.id].withdrawn)


def test_renamed_project_is_heeded_at_once(tenancy, project, key, read):
    read()
    tenancy.projects.modify(project.id, ProjectChange(name="another"))
    assert read()[key.id].project.name == "another"


def test_key_that_is_rotated_or_revoked_is_heeded_at_once(tenancy, project, key, read, clock):
    assert read()[key.id].key.expires_at is None
    newer, _ = tenancy.keys.rotate(key.id, overlap_s=60)
    after = read()
    assert (after[key.id].key.expires_at, after[key.id].is_restricted) == (clock.now() + 60, True)
    tenancy.keys.revoke(key.id)
    assert set(read()) == {newer.id}
