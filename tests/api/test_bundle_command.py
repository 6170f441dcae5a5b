"""``maas bundle`` and ``maas export --detach`` against a gateway, as an operator types them."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from maas.cli.main import app
from maas.core.errors import ConfigError, Conflict, MaasError, NotFound
from maas.edge.runtime.bundle.archive import verify
from maas.edge.runtime.cli.main import app as edge
from maas.store.device_groups import ChannelRepository
from maas.store.fleet_records import DEFAULT_CHANNEL
from tests.api.conftest import RunningGateway
from tests.api.yard import BASE, Yard, open_yard

Run = Callable[..., Any]


@pytest.fixture
def yard(gateway: RunningGateway, smollm2_dir: Path) -> Iterator[Yard]:
    with open_yard(gateway, smollm2_dir) as opened:
        yield opened


@pytest.fixture
def maas(yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; return the object it prints, or its text."""
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))

    def run(*arguments: str, as_json: bool = True):
        where = ["--url", yard.gateway.url, "--key", yard.key]
        done = CliRunner().invoke(app, [*arguments, *where, *(["--json"] if as_json else [])])
        if isinstance(done.exception, MaasError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if as_json else done.stdout

    return run


def test_bundles_are_listed_and_shown(yard: Yard, maas: Run) -> None:
    first = yard.made(name="greeter")["bundle_id"]
    second = yard.made(precision="int8")["bundle_id"]
    listed = maas("bundle", "list")["data"]
    assert [item["id"] for item in listed] == [second, first]
    (rest,) = maas("bundle", "list", "--limit", "1", "--after", second)["data"]
    assert (rest["id"], rest["name"]) == (first, "greeter")
    text = maas("bundle", "list", "--limit", "1", as_json=False)
    assert f"--after {second}" in text
    assert maas("bundle", "show", second)["manifest"]["precision"] == "int8"
    shown = maas("bundle", "show", second, as_json=False).split()
    assert {"int8", "cpu", "Apache-2.0", BASE} <= set(shown)
    with pytest.raises(NotFound):
        maas("bundle", "show", "0" * 64)


def test_the_printed_key_is_the_one_that_signs_and_that_a_device_trusts(
    yard: Yard, maas: Run, tmp_path: Path
) -> None:
    bundle_id = yard.made()["bundle_id"]
    out = tmp_path / "m.maas"
    maas("bundle", "download", bundle_id, "--out", str(out))
    printed = maas("bundle", "key", as_json=False)
    assert printed == maas("bundle", "key")["public_key"] + "\n"
    assert verify(out, {printed.strip()}).manifest.bundle_id == bundle_id
    device = {"MAAS_EDGE_HOME": str(tmp_path / "device")}
    trusted = CliRunner().invoke(edge, ["trust", printed], env=device)
    assert trusted.exit_code == 0, trusted.output
    checked = CliRunner().invoke(edge, ["verify", str(out), "--json"], env=device)
    assert json.loads(checked.stdout)["is_trusted"] is True


def test_bundle_is_downloaded_and_checked(yard: Yard, maas: Run, tmp_path: Path) -> None:
    bundle_id = yard.made()["bundle_id"]
    out = tmp_path / "m.maas"
    done = maas("bundle", "download", bundle_id, "--out", str(out))
    assert (done["bundle_id"], done["path"]) == (bundle_id, str(out))
    assert done["size_bytes"] == out.stat().st_size
    assert verify(out, None).manifest.bundle_id == bundle_id
    with pytest.raises(ConfigError, match="is a folder"):
        maas("bundle", "download", bundle_id, "--out", str(tmp_path))


def test_bundle_is_deleted_unless_devices_should_run_it(yard: Yard, maas: Run) -> None:
    wanted, other = yard.made()["bundle_id"], yard.made()["bundle_id"]
    store = yard.gateway.store
    channels = ChannelRepository(store.database, store.clock)
    channels.set(yard.project_id, DEFAULT_CHANNEL, wanted)
    with pytest.raises(Conflict, match="the channel stable should run"):
        maas("bundle", "delete", wanted)
    assert maas("bundle", "delete", other)["deleted"] is True
    assert [item["id"] for item in maas("bundle", "list")["data"]] == [wanted]
    channels.set(yard.project_id, DEFAULT_CHANNEL, None)
    assert wanted in maas("bundle", "delete", wanted, as_json=False)
    assert maas("bundle", "list")["data"] == []


def test_detached_export_is_asked_for_and_told_of_later(yard: Yard, maas: Run) -> None:
    more = ("--name", "greeter", "--metadata", "team=edge", "--goal", "97", "--max-attempts", "2")
    asked = maas("export", BASE, "--detach", *more)
    assert (asked["status"], asked["name"]) == ("queued", "greeter")
    assert asked["metadata"] == {"team": "edge"}
    asyncio.run(yard.queue.step())
    (spec,) = yard.asked
    assert (spec.quality.goal_percent, spec.quality.max_attempts) == (97.0, 2)
    events = maas("exports", "events", asked["id"])["data"]
    bundle_id = maas("exports", "show", asked["id"])["bundle_id"]
    assert bundle_id in events[0]["message"]
    assert "The bundle is made" in maas("exports", "events", asked["id"], as_json=False)
    assert "queued" in maas("export", BASE, "--detach", as_json=False)


def test_export_that_cannot_be_meant_so_is_refused(yard: Yard, maas: Run, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "m"))
    for more, words in (
        ((), "--out"),
        (("--detach", *out), "writes no file"),
        (("--detach", "--name", "a/b"), "at most 64 letters"),
        (("--detach", "--metadata", "team"), "NAME=VALUE"),
        (("--out", str(tmp_path)), "is a folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            maas("export", BASE, *more)
    assert yard.client.get("/v1/exports").json()["data"] == []
