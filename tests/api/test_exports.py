"""An export from its request to a device: real gateway, queue and shelf; its steps are short."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maas.cli.exports import download
from maas.cli.main import app
from maas.core.errors import BundleRefused
from maas.edge.runtime.bundle.archive import verify
from maas.edge.runtime.shelf.shelf import Shelf
from maas.edge.runtime.shelf.sources import HttpSource
from maas.serving.exports.sweeper import BundleSweeper
from maas.store.bundles import BundleRepository
from tests.api.conftest import RunningGateway
from tests.api.yard import BASE, Yard, open_yard
from tests.fakes.adapters import tuned_model


@pytest.fixture
def yard(gateway: RunningGateway, smollm2_dir: Path) -> Iterator[Yard]:
    with open_yard(gateway, smollm2_dir) as opened:
        yield opened


def test_device_pulls_the_bundle_that_was_asked_for(yard: Yard, tmp_path: Path) -> None:
    asked = yard.export(name="greeter")
    assert (asked["status"], asked["object"], asked["name"]) == ("queued", "export", "greeter")
    assert asked["estimate"]["ram_bytes"] > 2**31
    asyncio.run(yard.queue.step())
    export = yard.client.get(f"/v1/exports/{asked['id']}").json()
    assert (export["status"], export["error"]) == ("succeeded", None)
    bundle = yard.client.get(f"/v1/bundles/{export['bundle_id']}").json()
    assert bundle["manifest"]["lineage"]["export"] == asked["id"]
    assert bundle["manifest"]["licence"]["name"] == "Apache-2.0"
    url = f"{yard.gateway.url}/v1/bundles/{bundle['id']}/content"
    pulled = Shelf(tmp_path / "device").pull(HttpSource(url, yard.key))
    assert pulled.held.manifest.bundle_id == bundle["id"]
    assert not list((yard.gateway.home / "scratch").glob("export-*")), "it leaves nothing behind"
    events = yard.client.get(f"/v1/exports/{asked['id']}/events").json()["data"]
    assert events[0]["message"] == f"The bundle is made: {bundle['id']}"


def test_content_is_answered_in_ranges(yard: Yard) -> None:
    bundle_id = yard.made()["bundle_id"]
    path = f"/v1/bundles/{bundle_id}/content"

    def ask(span: str, **headers: str):
        return yard.client.get(path, headers={"Range": span, **headers})

    whole = yard.client.get(path)
    assert (whole.status_code, whole.headers["etag"]) == (200, f'"{bundle_id}"')
    size = len(whole.content)
    assert ask("bytes=10-19").content == whole.content[10:20]
    assert ask("bytes=10-19").headers["content-range"] == f"bytes 10-19/{size}"
    assert ask(f"bytes={size - 5}-").content == ask("bytes=-5").content == whole.content[-5:]
    assert ask("bytes=0-99", **{"If-Range": '"another"'}).status_code == 200
    beyond = ask(f"bytes={size}-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    assert ask("lines=1-2").status_code == 200


def test_deleted_bundle_is_gone(yard: Yard) -> None:
    bundle_id = yard.made()["bundle_id"]
    assert yard.client.delete(f"/v1/bundles/{bundle_id}").json()["deleted"] is True
    assert yard.client.get(f"/v1/bundles/{bundle_id}/content").status_code == 404
    listed = yard.client.get("/v1/bundles").json()["data"]
    assert bundle_id not in {item["id"] for item in listed}


def test_bytes_of_a_deleted_bundle_are_swept(yard: Yard) -> None:
    gone, kept = yard.made()["bundle_id"], yard.made()["bundle_id"]
    yard.client.delete(f"/v1/bundles/{gone}")
    store = yard.gateway.store
    bundles = BundleRepository(store.database, store.clock)
    BundleSweeper(bundles, yard.blobs).sweep()
    assert yard.blobs.exists(f"bundles/{gone}"), "what is young stays"
    BundleSweeper(bundles, yard.blobs, kept_s=-1.0).sweep()
    assert not yard.blobs.exists(f"bundles/{gone}")
    assert yard.client.get(f"/v1/bundles/{kept}/content").status_code == 200


def test_tuned_model_is_merged_with_its_own_lineage_and_licence(yard: Yard) -> None:
    model = yard.tuned()
    assert yard.made(model=model.id)["status"] == "succeeded"
    (spec,) = yard.asked
    assert spec.adapter_dir is not None
    assert (spec.model_id, spec.base_model_id) == (model.id, BASE)
    assert spec.lineage["adapter_sha256"] == model.adapter_id


def test_what_cannot_be_made_is_refused_when_it_is_asked_for(yard: Yard) -> None:
    for fields, status, code in (
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"precision": "fp16"}, 400, "capability_missing"),
        ({"colour": "red"}, 400, "unknown_field"),
    ):
        answer = yard.client.post("/v1/exports", json={"model": BASE, **fields})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert yard.client.get("/v1/exports").json()["data"] == []


def test_another_projects_tuned_model_is_not_there(yard: Yard) -> None:
    model = tuned_model(yard.gateway.store, yard.gateway.project_id, base=BASE)
    assert yard.client.post("/v1/exports", json={"model": model.id}).status_code == 404


def test_cancelled_export_is_not_made(yard: Yard) -> None:
    export_id = yard.export()["id"]
    assert yard.client.post(f"/v1/exports/{export_id}/cancel").json()["status"] == "cancelled"
    asyncio.run(yard.queue.step())
    assert yard.asked == []


def test_command_has_the_platform_make_it_and_downloads_it(yard: Yard, tmp_path: Path) -> None:
    def work() -> None:
        deadline = time.monotonic() + 20
        while not yard.asked and time.monotonic() < deadline:
            asyncio.run(yard.queue.step())
            time.sleep(0.05)

    queue = threading.Thread(target=work)
    queue.start()
    out, there = tmp_path / "m.maas", ["--url", yard.gateway.url, "--key", yard.key, "--json"]
    done = CliRunner().invoke(app, ["export", BASE, "--out", str(out), *there])
    queue.join()
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert verify(out, None).manifest.bundle_id == told["bundle_id"]
    assert told["size_bytes"] == out.stat().st_size
    assert [path.name for path in tmp_path.glob("*m.maas*")] == ["m.maas"]
    listed = CliRunner().invoke(app, ["exports", "list", *there])
    (export,) = json.loads(listed.stdout)["data"]
    assert export["bundle_id"] == told["bundle_id"]
    waiting = yard.export()["id"]
    ended = CliRunner().invoke(app, ["exports", "cancel", waiting, *there])
    assert json.loads(ended.stdout)["status"] == "cancelled"
    seen = CliRunner().invoke(app, ["exports", "show", waiting, *there])
    assert json.loads(seen.stdout)["status"] == "cancelled"
    read = CliRunner().invoke(app, ["exports", "show", waiting, *there[:-1]]).stdout
    assert "cancelled" in read
    assert "0E-" not in read, "money is written out"


def test_download_goes_on_where_it_ended(yard: Yard, tmp_path: Path) -> None:
    bundle = yard.client.get(f"/v1/bundles/{yard.made()['bundle_id']}").json()
    url = f"{yard.gateway.url}/v1/bundles/{bundle['id']}/content"
    out = tmp_path / "m.maas"
    begun = tmp_path / f".m.maas.{bundle['id'][:12]}.part"
    begun.write_bytes(yard.client.get(url).content[:1000])
    download(HttpSource(url, yard.key), bundle, out)
    assert verify(out, None).manifest.bundle_id == bundle["id"]
    begun.write_bytes(bytes(1000))
    with pytest.raises(BundleRefused):
        download(HttpSource(url, yard.key), bundle, out)
    assert not begun.exists(), "the next one begins anew"
