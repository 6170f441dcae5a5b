"""API keys: shown once, stored as a salted hash, refused once revoked."""

import pytest
from sqlalchemy import MetaData, select

from maas.core.errors import AuthenticationFailed, NotFound
from maas.store.keys import KEY_PREFIX, KeyRepository, check_key
from maas.store.state import ensure_project


@pytest.fixture
def keys(database, clock):
    return KeyRepository(database, clock)


@pytest.fixture
def project_id(database, clock):
    return ensure_project(database, clock)


def _by_id(keys):
    return {key.id: key for key in keys.list()}


def test_made_key_is_accepted(keys, project_id):
    record, full = keys.create(project_id=project_id, name="app")
    assert full.startswith(KEY_PREFIX)
    assert check_key(full, _by_id(keys)) == record


def test_secret_is_nowhere_in_the_database(database, keys, project_id):
    record, full = keys.create(project_id=project_id, name="app")
    secret = full.removeprefix(KEY_PREFIX).partition("-")[2]
    tables = MetaData()
    tables.reflect(database.engine)
    with database.read() as session:
        dump = str([session.execute(select(table)).all() for table in tables.sorted_tables])
    assert record.digest in dump
    assert len(secret) >= 40
    assert secret not in dump


def test_same_secret_has_another_digest_in_another_row(keys, project_id):
    first, _ = keys.create(project_id=project_id, name="a")
    second, _ = keys.create(project_id=project_id, name="a")
    assert first.salt != second.salt
    assert first.digest != second.digest


@pytest.mark.parametrize(
    "presented",
    ["", "nonsense", KEY_PREFIX, f"{KEY_PREFIX}-", f"{KEY_PREFIX}keyx-secret", "sk-" + "a" * 9999],
)
def test_what_is_no_key_is_refused(keys, project_id, presented):
    keys.create(project_id=project_id, name="app")
    with pytest.raises(AuthenticationFailed):
        check_key(presented, _by_id(keys))


def test_right_id_with_wrong_secret_is_refused(keys, project_id):
    _, full = keys.create(project_id=project_id, name="app")
    with pytest.raises(AuthenticationFailed):
        check_key(full[:-1] + ("A" if full[-1] != "A" else "B"), _by_id(keys))


def test_empty_secret_does_not_match_the_nobody_row(keys):
    with pytest.raises(AuthenticationFailed):
        check_key(f"{KEY_PREFIX}-", {})


def test_revoked_key_is_refused_and_keeps_its_first_time(keys, project_id, clock):
    record, full = keys.create(project_id=project_id, name="app")
    first = keys.revoke(record.id).revoked_at
    clock.advance(10)
    assert keys.revoke(record.id).revoked_at == first
    with pytest.raises(AuthenticationFailed):
        check_key(full, _by_id(keys))


def test_revoking_an_unknown_key_says_so(keys):
    with pytest.raises(NotFound, match="maas key list"):
        keys.revoke("key404")
