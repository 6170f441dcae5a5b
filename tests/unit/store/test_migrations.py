"""Migrations: from every earlier version, once, whole or not at all, with a copy before."""

import logging
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, Float, Integer, LargeBinary, MetaData, func, inspect, select

from maas.bootstrap.store import open_store
from maas.core.errors import HostError
from maas.core.settings import Settings
from maas.store.backups import Backups
from maas.store.database import Database
from maas.store.migrate import MIGRATIONS_DIR
from maas.store.tables import Base
from tests.conftest import REPOSITORY


def revisions() -> list[str]:
    """Return all revisions, oldest first."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    return [script.revision for script in reversed(scripts)]


EVERY = revisions()
HEAD = EVERY[-1]


@pytest.fixture
def empty(empty_store_url):
    database = Database(empty_store_url)
    yield database
    database.close()


def version_of(database: Database) -> str | None:
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _value(column, row: int):
    """Return something that a column takes."""
    kind = column.type
    if isinstance(kind, JSON):
        return ["x"]
    if isinstance(kind, Boolean):
        return True
    if isinstance(kind, (Integer, Float)):
        return row
    return b"x" if isinstance(kind, LargeBinary) else f"{column.name}-{row}"


def fill(database: Database) -> dict[str, int]:
    """Put two rows into every table of whatever version; return how many each has."""
    tables = MetaData()
    tables.reflect(database.engine)
    counts: dict[str, int] = {}
    with database.engine.begin() as connection:
        for table in tables.sorted_tables:
            if table.name == "alembic_version":
                continue
            for row in (101, 102):
                values = {column.name: _value(column, row) for column in table.columns}
                for key in table.foreign_keys:
                    # What it points at was filled before it (sorted_tables).
                    values[key.parent.name] = _value(key.column, row)
                connection.execute(table.insert().values(values))
            counts[table.name] = connection.scalar(select(func.count()).select_from(table)) or 0
    return counts


def write_migration(folder: Path, name: str, body: str, *, after: str = HEAD) -> Path:
    """Copy the migrations and add one after the newest."""
    copied = folder / "migrations"
    if not copied.exists():
        shutil.copytree(MIGRATIONS_DIR, copied, ignore=shutil.ignore_patterns("__pycache__"))
    lines = [
        "import os, signal, time",
        "import sqlalchemy as sa",
        "from alembic import op",
        f"revision, down_revision = {name!r}, {after!r}",
        "def upgrade():",
        *(f"    {line}" for line in body.splitlines()),
    ]
    (copied / "versions" / f"{name}.py").write_text("\n".join(lines) + "\n")
    return copied


ADD_TABLE = 'op.create_table("half_way", sa.Column("id", sa.BigInteger, primary_key=True))'


def test_migrations_are_one_line_from_the_first_to_the_newest():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    scripts = ScriptDirectory.from_config(config)
    assert len(scripts.get_heads()) == 1
    assert len(scripts.get_bases()) == 1


@pytest.mark.parametrize("version", EVERY)
def test_store_of_every_version_with_rows_in_every_table_comes_up_to_this_one(empty, version):
    empty.migrator().run(version)
    before = fill(empty)
    empty.migrate()
    assert version_of(empty) == HEAD
    left = inspect(empty.engine).get_table_names()
    with empty.engine.connect() as connection:
        for name, num_rows in before.items():
            if name in left:
                now = connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar()
                assert now >= num_rows, f"{name} lost rows"


def test_charges_of_tuned_models_get_their_base_and_its_counters_are_made_anew(empty):
    empty.migrator().run("0070")
    fill(empty)
    tables = MetaData()
    tables.reflect(empty.engine, only=["journal", "tuned_models", "counters"])
    journal, tuned, counters = (
        tables.tables[name] for name in ("journal", "tuned_models", "counters")
    )
    days = [f"tokens_per_day/20260101T0000/{name}" for name in ("idle", "held")]
    with empty.engine.begin() as connection:
        (tuned_id, base), *_ = connection.execute(select(tuned.c.id, tuned.c.base_model_id)).all()
        changed = journal.update().where(journal.c.id == "id-101").values(model_id=tuned_id)
        connection.execute(changed)
        for key, leased in ((days[0], 0), (days[1], 5), ("requests_per_minute/x/idle", 0)):
            row = {"key": key, "window_end": 1.0, "used": 1, "leased": leased}
            connection.execute(counters.insert().values(row))
    empty.migrate()
    with empty.engine.connect() as connection:
        bases = dict(connection.exec_driver_sql("SELECT id, base_model_id FROM journal").all())
        left = set(connection.scalars(select(counters.c.key)))
    assert bases == {"id-101": base, "id-102": ""}
    assert days[0] not in left
    assert {days[1], "requests_per_minute/x/idle"} < left


def test_migrated_tables_are_those_of_the_code(empty):
    empty.migrate()
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing_and_waits_for_no_writer(empty):
    empty.migrate()
    with empty.write():
        started = time.monotonic()
        empty.migrate()
        assert time.monotonic() - started < 1


def test_failed_migration_leaves_the_store_as_it_was(empty, tmp_path):
    empty.migrate()
    migrations = write_migration(tmp_path, "9001", f'{ADD_TABLE}\nop.drop_table("nowhere")')
    backups = Backups(tmp_path / "backups", keep=5)
    with pytest.raises(HostError, match="nowhere"):
        empty.migrator(backups, migrations_dir=migrations).run()
    assert version_of(empty) == HEAD
    assert "half_way" not in inspect(empty.engine).get_table_names()
    assert backups.list() == []
    with empty.write():
        pass


def test_migration_that_its_rows_do_not_allow_says_so(empty, tmp_path):
    empty.migrate()
    body = 'op.execute("INSERT INTO revision (id, value) VALUES (1, 1)")'
    migrations = write_migration(tmp_path, "9001", body)
    with pytest.raises(HostError, match=r"upgrading the store .* failed, nothing was changed"):
        empty.migrator(migrations_dir=migrations).run()


def run_migrations(url: str, migrations: Path, backups: Path) -> subprocess.Popen[str]:
    """Migrate in a process of its own."""
    program = (
        "import sys; from pathlib import Path; from maas.store.database import Database\n"
        "from maas.store.backups import Backups\n"
        "backups = Backups(Path(sys.argv[3]), keep=5)\n"
        "migrations = Path(sys.argv[2])\n"
        "Database(sys.argv[1]).migrator(backups, migrations_dir=migrations).run()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, url, str(migrations), str(backups)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_process_killed_in_mid_migration_leaves_the_store_as_it_was(
    empty_store_url, empty, tmp_path
):
    empty.migrate()
    flag = tmp_path / "half-way"
    body = f"{ADD_TABLE}\nopen({str(flag)!r}, 'w').close()\ntime.sleep(60)"
    process = run_migrations(
        empty_store_url, write_migration(tmp_path, "9001", body), tmp_path / "backups"
    )
    deadline = time.monotonic() + 30
    while not flag.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert version_of(empty) == HEAD
    assert "half_way" not in inspect(empty.engine).get_table_names()
    with empty.write():
        pass
    # The next start, with the migration mended, goes through.
    mended = write_migration(tmp_path, "9001", ADD_TABLE)
    empty.migrator(migrations_dir=mended).run()
    assert "half_way" in inspect(empty.engine).get_table_names()


def test_processes_that_start_at_once_migrate_once(empty_store_url, empty, tmp_path):
    empty.migrate()
    # Run twice, this would fail: the row is there then.
    body = 'time.sleep(0.5)\nop.execute("INSERT INTO revision (id, value) VALUES (7, 7)")'
    migrations = write_migration(tmp_path, "9001", body)
    backups = tmp_path / "backups"
    processes = [run_migrations(empty_store_url, migrations, backups) for _ in range(4)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert version_of(empty) == "9001"
    assert sum("upgrading the store" in text for text in said) == 1


def test_store_of_a_newer_version_is_refused_in_one_line_and_left_alone(empty, tmp_path):
    newer = write_migration(tmp_path, "9001", ADD_TABLE)
    empty.migrator(migrations_dir=newer).run()
    with pytest.raises(HostError, match="newer version of this platform") as caught:
        empty.migrate()
    assert "9001" in caught.value.message
    assert HEAD in caught.value.message
    assert "\n" not in caught.value.message
    assert version_of(empty) == "9001"


def sqlite_at(folder: Path) -> Database:
    database = Database(f"sqlite:///{folder / 'maas.db'}")
    database.migrate()
    return database


def test_sqlite_store_is_copied_whole_before_it_is_changed(tmp_path, caplog):
    database = sqlite_at(tmp_path)
    counts = fill(database)
    migrations = write_migration(tmp_path, "9001", 'op.drop_table("aliases")')
    backups = Backups(tmp_path / "backups", keep=5)
    with caplog.at_level(logging.WARNING):
        database.migrator(backups, migrations_dir=migrations).run()
    database.close()
    (copy,) = (tmp_path / "backups").iterdir()
    assert re.fullmatch(rf"{HEAD}-\d{{8}}T\d{{6}}\.\d{{6}}Z\.db", copy.name)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert str(copy) in caplog.text
    with closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("SELECT count(*) FROM aliases").fetchone() == (counts["aliases"],)
    # Put back, it is a store of the version before.
    shutil.copy(copy, tmp_path / "maas.db")
    database = Database(f"sqlite:///{tmp_path / 'maas.db'}")
    assert version_of(database) == HEAD
    database.close()


@pytest.mark.parametrize("version", EVERY[:-1])
def test_platform_brings_an_older_store_up_by_itself_after_a_copy(tmp_path, version):
    settings = Settings(home=tmp_path)
    database = Database(settings.resolved_database_url)
    database.migrator().run(version)
    counts = fill(database)
    database.close()
    opened = open_store(settings)
    assert version_of(opened.database) == HEAD
    opened.database.close()
    (copy,) = settings.backups_dir.glob("*.db")
    with closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == (version,)
        for table, count in counts.items():
            assert raw.execute(f"SELECT count(*) FROM {table}").fetchone() == (count,)


def test_first_start_makes_no_copy_and_says_nothing(tmp_path, caplog):
    database = Database(f"sqlite:///{tmp_path / 'maas.db'}")
    database.migrate(backups_dir=tmp_path / "backups")
    database.close()
    assert not (tmp_path / "backups").exists()
    assert caplog.text == ""


def test_only_the_newest_copies_are_kept_and_unfinished_ones_go(tmp_path):
    sqlite_at(tmp_path).close()
    backups = Backups(tmp_path / "backups", keep=3)
    made = [backups.make(tmp_path / "maas.db", f"000{n}") for n in range(5)]
    (tmp_path / "backups" / "0009-killed.db.draft").touch()
    made.append(backups.make(tmp_path / "maas.db", "0005"))
    assert backups.list() == made[-3:]
    assert sorted((tmp_path / "backups").iterdir()) == sorted(made[-3:])


def test_upgrade_is_refused_where_no_copy_can_be_made(tmp_path):
    database = sqlite_at(tmp_path)
    (tmp_path / "backups").touch()  # a file where the folder should be
    migrations = write_migration(tmp_path, "9001", ADD_TABLE)
    with pytest.raises(HostError, match="backups"):
        database.migrator(Backups(tmp_path / "backups", keep=5), migrations_dir=migrations).run()
    assert version_of(database) == HEAD
    database.close()


def test_migration_that_would_break_references_is_undone(tmp_path):
    database = sqlite_at(tmp_path)
    fill(database)
    migrations = write_migration(tmp_path, "9001", 'op.execute("DELETE FROM deployments")')
    with pytest.raises(HostError, match="replicas -> deployments"):
        database.migrator(migrations_dir=migrations).run()
    with database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM deployments").scalar()
    database.close()


def test_table_that_others_point_at_is_remade_without_losing_their_rows(empty, tmp_path):
    empty.migrate()
    counts = fill(empty)
    body = (
        'with op.batch_alter_table("projects") as batch:\n'
        '    batch.alter_column("name", type_=sa.String(300))'
    )
    empty.migrator(migrations_dir=write_migration(tmp_path, "9001", body)).run()
    with empty.read() as session:
        for name in ("projects", "api_keys", "deployments", "replicas"):
            rows = session.connection().exec_driver_sql(f"SELECT count(*) FROM {name}").scalar()
            assert rows == counts[name]


def test_upgrade_of_postgres_says_how_to_dump_without_the_password(postgres, tmp_path, caplog):
    with postgres.migrated() as url:
        database = Database(url)
        database.migrator(migrations_dir=write_migration(tmp_path, "9001", ADD_TABLE)).run()
        database.close()
    assert re.search(r"pg_dump .* 'postgresql://maas@127\.0\.0\.1:\d+/test_\d+'", caplog.text)
    assert postgres.password not in caplog.text
