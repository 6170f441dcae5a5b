"""``maas gateway`` and ``maas controller``: what cannot run is refused in one line."""

import os
import socket
import subprocess
import sys

from maas.bootstrap.store import read_settings, save_settings
from maas.core.settings import load_settings
from tests.conftest import REPOSITORY


def run(*arguments: str, home) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MAAS_")}
    return subprocess.run(
        [sys.executable, "-m", "maas", *arguments],
        cwd=REPOSITORY,
        env={**environ, "MAAS_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_controller_without_a_cluster_is_refused(tmp_path):
    done = run("controller", home=tmp_path)
    assert done.returncode == 1
    assert "MAAS_SERVING__RAY_ADDRESS" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_gateway_on_a_taken_port_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("gateway", "--port", str(taken.getsockname()[1]), home=tmp_path)
    assert done.returncode == 1
    assert "MAAS_PORT" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_processes_of_their_own_leave_the_settings_of_the_platform_alone(tmp_path):
    url = "postgresql://maas:pa55word@db/maas"
    environ = {"MAAS_HOME": str(tmp_path), "MAAS_DATABASE_URL": url}
    settings = load_settings(environ=environ, config_file=tmp_path / "none.toml")
    first = save_settings(settings)
    second = save_settings(settings.model_copy(update={"port": 9}), name="gateway-9")
    assert (read_settings(first).port, read_settings(second).port) == (8080, 9)
    assert read_settings(second).resolved_database_url == url
    assert second.stat().st_mode & 0o777 == 0o600
    assert "pa55word" not in repr(settings)
