"""When the store fails: bounded waits, plain words, no password, and back to work afterwards."""

import logging
import threading
import time
from contextlib import closing

import pytest
from sqlalchemy import delete, select

from maas.core.errors import (
    ConfigError,
    Conflict,
    HostError,
    InvalidRequest,
    MaasError,
    StoreUnavailable,
)
from maas.core.settings import StoreSettings
from maas.store.aliases import AliasRepository
from maas.store.database import Database
from maas.store.deployments import DeploymentRepository
from maas.store.keys import KeyRepository
from maas.store.records import DeploymentStatus
from maas.store.state import StateReader, ensure_project
from maas.store.tables import AliasRow, LeaseRow

IMPATIENT = StoreSettings(pool_size=2, statement_timeout_s=1.5, lock_timeout_s=0.5)


@pytest.fixture
def impatient(postgres):
    """A PostgreSQL store with short patience."""
    with postgres.migrated() as url:
        database = Database(url, IMPATIENT)
        yield database
        database.close()


def chain_of(error: BaseException | None) -> str:
    """Return all that a log with traceback would show."""
    shown = []
    while error is not None:
        shown += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(shown)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://maas:pa55word@host:port/name",
        "postgresql://maas:pa55/word@:@host/name",
        "pa55word",
        "mysql://maas:pa55word@host/name",
        "",
    ],
)
def test_bad_url_is_refused_with_what_is_wanted_and_is_not_repeated(url):
    with pytest.raises(ConfigError, match=r"MAAS_DATABASE_URL.*want postgresql://") as caught:
        Database(url)
    assert "pa55" not in caught.value.message


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_postgres_is_taken(postgres, scheme):
    with postgres.migrated() as url:
        database = Database(url.replace("postgresql", scheme, 1))
        with database.read() as session:
            assert session.scalars(select(AliasRow)).all() == []
        database.close()


def test_password_is_in_no_message(caplog):
    url = "postgresql://maas:pa55word@127.0.0.1:1/name?password=pa55word&connect_timeout=2"
    database = Database(url)
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable) as caught:
        database.migrate()
    assert "maas:***@127.0.0.1:1/name" in caught.value.message
    assert "pa55word" not in chain_of(caught.value) + caplog.text + repr(database.engine)
    database.close()


def test_wrong_password_says_so_and_not_which(postgres):
    with postgres.migrated() as url:
        database = Database(url.replace(postgres.password, "pa55word"))
        with pytest.raises(StoreUnavailable, match="password authentication failed") as caught:
            database.migrate()
        assert "pa55word" not in chain_of(caught.value)
        database.close()


def test_values_are_in_no_message(database, clock):
    """A key's digest, a sealed secret: what is written must not come back in an error."""
    with pytest.raises(Conflict) as caught:
        KeyRepository(database, clock).create(project_id="nobody", name="n")
    assert "INSERT" not in caught.value.message
    assert "nobody" not in chain_of(caught.value).partition("DETAIL")[0]


@pytest.mark.parametrize("name", ["x" * 256, "nul\0", "half \ud800"])
def test_text_that_not_every_database_takes_is_refused_on_all(database, clock, name):
    with pytest.raises(InvalidRequest, match="characters"):
        AliasRepository(database, clock).point(name, "m")


def test_text_of_every_alphabet_comes_back_the_same(database, clock):
    aliases = AliasRepository(database, clock)
    name = "模型 é 🙂 " + "x" * 240
    aliases.point(name, "m")
    assert [alias.name for alias in aliases.list()] == [name]


def test_last_words_of_an_engine_are_kept_whatever_they_hold(database, clock):
    deployments = DeploymentRepository(database, clock)
    made = deployments.create(
        project_id=ensure_project(database, clock), model_id="m", engine="vllm", options={}
    )
    deployments.record_failure(made.id, "died\0 \ud800 " + "x" * 5000)
    assert deployments.get(made.id).reason.startswith("died ? x")
    deployments.observe(made.id, status=DeploymentStatus.FAILED, reason="\0again", seen_failures=1)
    assert deployments.get(made.id).reason == "again"


def test_writer_that_stands_still_is_ended_before_others_give_up(impatient):
    is_in, may_go = threading.Event(), threading.Event()
    ended: list[BaseException] = []

    def stand_still() -> None:
        try:
            with impatient.write():
                is_in.set()
                may_go.wait(20)
        except MaasError as error:
            ended.append(error)

    writer = threading.Thread(target=stand_still)
    writer.start()
    assert is_in.wait(10)
    try:
        with impatient.write():  # waits until the other's transaction is ended by the server
            pass
    finally:
        may_go.set()
        writer.join(10)
    assert isinstance(ended[0], StoreUnavailable)


def test_writer_gives_up_when_another_one_takes_too_long(impatient):
    is_in = threading.Event()

    def work() -> None:
        with impatient.write() as session:
            is_in.set()
            session.connection().exec_driver_sql("SELECT pg_sleep(1.2)")

    writer = threading.Thread(target=work)
    writer.start()
    assert is_in.wait(10)
    started = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable, match="busy"), impatient.write():
            pass
        assert time.monotonic() - started < 1.1
    finally:
        writer.join(10)


def test_statement_that_takes_too_long_is_ended(impatient):
    with pytest.raises(StoreUnavailable, match="busy"), impatient.read() as session:
        session.connection().exec_driver_sql("SELECT pg_sleep(20)")


def test_pool_without_a_free_connection_says_so_in_time(impatient):
    with impatient.read(), impatient.read():
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="busy"), impatient.read():
            pass
        assert time.monotonic() - started < 2


def test_reader_cannot_write(impatient):
    with pytest.raises(HostError, match="read-only"), impatient.read() as session:
        session.execute(delete(LeaseRow))


def test_server_that_restarts_is_used_again_by_the_same_process(own_postgres, clock):
    with own_postgres.migrated() as url, closing(Database(url)) as database:
        state, aliases = StateReader(database, clock), AliasRepository(database, clock)
        aliases.point("before", "m")
        own_postgres.stop()
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="does not answer"):
            state.read()
        assert time.monotonic() - started < 6
        own_postgres.start()
        assert [alias.name for alias in state.read().aliases] == ["before"]
        aliases.point("after", "m")


def test_server_that_is_away_for_a_moment_is_not_noticed(own_postgres, clock):
    with own_postgres.migrated() as url, closing(Database(url)) as database:
        aliases = AliasRepository(database, clock)
        aliases.point("before", "m")
        own_postgres.stop()
        back = threading.Timer(0.3, own_postgres.start)
        back.start()
        aliases.point("after", "m")
        back.join()
        assert len(aliases.list()) == 2


def test_connection_lost_in_mid_transaction_loses_all_of_it_and_no_more(impatient, postgres):
    def lose_it() -> None:
        with impatient.write() as session:
            session.add(AliasRow(name="lost", model_id="m", created_at=0.0))
            session.flush()
            pid = session.connection().exec_driver_sql("SELECT pg_backend_pid()").scalar()
            postgres.execute(f"SELECT pg_terminate_backend({pid})")
            session.add(AliasRow(name="lost too", model_id="m", created_at=0.0))

    with pytest.raises(StoreUnavailable, match="does not answer"):
        lose_it()
    with impatient.read() as session:
        assert session.scalars(select(AliasRow)).all() == []
