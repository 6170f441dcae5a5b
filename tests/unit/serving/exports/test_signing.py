"""The key for bundles: one for all homes on a store, the one that devices trust already."""

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select, update

from maas.bootstrap.signing import make_signing, prepare_signing
from maas.bootstrap.store import open_store
from maas.core.clock import SystemClock
from maas.core.errors import ConfigError
from maas.core.settings import Settings
from maas.edge.runtime.bundle.signing import load_or_make_key, private_key_of, public_key_of
from maas.serving.exports.signing import KEY_FILE, BundleSigning
from maas.store.database import Database
from maas.store.edge_tables import BundleRow, SigningKeyRow
from maas.store.secrets import KEY_FILE as SECRET_FILE
from maas.store.secrets import Sealing, SecretBox
from maas.store.signing_keys import SigningKeyRepository
from maas.store.state import ensure_project
from maas.store.tenancy_tables import AuditRow

Home = Callable[[str], BundleSigning]


def opened(database: Database, home: Path) -> BundleSigning:
    box = SecretBox(home)
    keys = SigningKeyRepository(database, SystemClock(), Sealing(box.seal, box.open))
    return BundleSigning(keys, home / KEY_FILE)


def public_of(signing: BundleSigning) -> str:
    """Sign, and say whose signature that is."""
    return public_key_of(private_key_of(signing.private_key()))


def row_of(database: Database) -> tuple[str, str]:
    with database.read() as session:
        row = session.scalars(select(SigningKeyRow)).one()
        return row.public_key, row.sealed_key


def add_bundle(database: Database) -> None:
    """As a platform made one whose key was a file."""
    project_id = ensure_project(database, SystemClock())
    with database.write() as session:
        session.add(
            BundleRow(
                id="b" * 64, project_id=project_id, name="m", model_id="m", blob_key="bundles/b",
                size_bytes=1, manifest={}, created_at=0.0, deleted_at=1.0,
            )
        )  # fmt: skip


@pytest.fixture
def home(database: Database, tmp_path: Path) -> Home:
    """Makes homes on one store, with the ``secret.key`` of one machine copied to all."""
    SecretBox(tmp_path).seal("made")

    def make(name: str) -> BundleSigning:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        shutil.copy(tmp_path / SECRET_FILE, folder)
        return opened(database, folder)

    return make


def test_two_homes_on_one_store_sign_with_the_same_key(database: Database, home: Home) -> None:
    first, second = home("one"), home("two")
    first.prepare()
    second.prepare()
    assert public_of(first) == public_of(second) == first.keys.find_public()
    assert not first.file.exists()
    assert not second.file.exists()
    public, sealed = row_of(database)
    assert first.private_key() not in f"{public} {sealed}"
    with database.read() as session:
        (entry,) = session.scalars(select(AuditRow).where(AuditRow.resource == "signing_key"))
    assert (entry.action, entry.after["public_key"]) == ("signing_key.created", public)
    assert sealed not in str(entry.after)


def test_homes_that_make_it_at_once_agree(store_url: str, home: Home, tmp_path: Path) -> None:
    names = [f"home-{number}" for number in range(8)]
    # Half of them have a key of their own from before.
    for name in names:
        home(name)
    for name in names[::2]:
        load_or_make_key(tmp_path / name / KEY_FILE)
    start = threading.Barrier(len(names))

    def sign(name: str) -> str:
        with closing(Database(store_url)) as database:
            signing = opened(database, tmp_path / name)
            start.wait(20)
            return public_of(signing)

    with ThreadPoolExecutor(len(names)) as threads:
        keys = set(threads.map(sign, names))
    assert len(keys) == 1
    assert public_of(home("late")) in keys


def test_the_key_of_a_home_s_file_becomes_the_store_s(home: Home) -> None:
    old = home("old")
    trusted = public_key_of(load_or_make_key(old.file))
    old.prepare()
    assert public_of(home("other")) == trusted
    old.file.unlink()
    assert public_of(old) == trusted


def test_an_export_takes_the_file_over_where_nothing_did_before(home: Home) -> None:
    old = home("old")
    trusted = public_key_of(load_or_make_key(old.file))
    assert public_of(old) == trusted == old.keys.find_public()


def test_a_home_that_merely_starts_first_leaves_it_to_the_one_that_signed(
    database: Database, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    add_bundle(database)
    new, old = home("new"), home("old")
    trusted = public_key_of(load_or_make_key(old.file))
    new.prepare()
    assert new.keys.find_public() is None
    old.prepare()
    assert public_of(new) == trusted
    assert caplog.records == []


def test_a_key_that_is_lost_is_replaced_when_a_bundle_must_be_signed_and_said(
    database: Database, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    add_bundle(database)
    new = home("new")
    assert public_of(new) == new.keys.find_public()
    assert "devices that trust the old one refuse them" in caplog.text


def test_a_file_that_is_not_the_store_s_key_is_not_used_and_said(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    kept = public_of(home("first"))
    late = home("late")
    load_or_make_key(late.file)
    late.prepare()
    assert f"{late.file} is key" in caplog.text
    assert "is not used" in caplog.text
    assert public_of(late) == kept
    caplog.clear()
    late.file.unlink()
    late.prepare()
    assert caplog.text == ""


@pytest.fixture
def strange(database: Database, home: Home, tmp_path: Path) -> Iterator[BundleSigning]:
    """A home whose secret.key is not the one that sealed; its attempts change nothing."""
    kept = public_of(home("first"))
    before = row_of(database)
    (tmp_path / "strange").mkdir()
    yield opened(database, tmp_path / "strange")
    assert row_of(database) == before
    assert public_of(home("first")) == kept


@pytest.mark.parametrize("has_file", [False, True])
def test_another_secret_key_is_an_error_that_says_so_and_makes_no_key(
    strange: BundleSigning, has_file: bool
) -> None:
    SecretBox(strange.file.parent).seal("of this home")
    if has_file:
        load_or_make_key(strange.file)
    for attempt in (strange.prepare, strange.private_key):
        with pytest.raises(ConfigError, match=r"cannot be opened here.*another key.*secret\.key"):
            attempt()


def test_a_home_without_the_secret_key_is_told_to_copy_it(strange: BundleSigning) -> None:
    with pytest.raises(ConfigError, match=r"secret\.key: not there.*copy it from the machine"):
        strange.private_key()
    assert list(strange.file.parent.iterdir()) == []


def test_a_platform_whose_secret_key_is_lost_gets_its_kept_file_back(
    database: Database, home: Home, tmp_path: Path
) -> None:
    add_bundle(database)
    old = home("old")
    trusted = public_key_of(load_or_make_key(old.file))
    old.prepare()
    (tmp_path / "new").mkdir()
    shutil.copy(old.file, tmp_path / "new")
    new = opened(database, tmp_path / "new")
    with pytest.raises(ConfigError, match=r"secret\.key"):
        new.prepare()
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM signing_keys")
    new.prepare()
    assert public_of(new) == trusted


def test_a_row_whose_halves_differ_signs_nothing(database: Database, home: Home) -> None:
    signing = home("one")
    signing.prepare()
    with database.engine.begin() as connection:
        connection.execute(update(SigningKeyRow.__table__).values(public_key="ab" * 32))
    with pytest.raises(ConfigError, match="halves differ"):
        signing.private_key()


def test_a_platform_starts_with_a_key_and_with_a_broken_file_too(
    migrated_sqlite: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "maas.db")
    settings = Settings(home=tmp_path)
    store = open_store(settings)
    with closing(store.database):
        (tmp_path / KEY_FILE).write_bytes(b"short")
        prepare_signing(settings, store)
        (said,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "not a signing key" in said.getMessage()
        signing = make_signing(settings, store)
        assert signing.keys.find_public() is None
        (tmp_path / KEY_FILE).unlink()
        prepare_signing(settings, store)
        assert signing.keys.find_public() == public_of(signing)
