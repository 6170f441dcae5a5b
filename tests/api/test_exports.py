"""An export from its request to a device: real gateway, queue and shelf; its steps are short."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from httpx import Client
from typer.testing import CliRunner

from maas.catalog.catalog import load_catalog
from maas.catalog.machine import Machine
from maas.cli.exports import download
from maas.cli.main import app
from maas.core.errors import BundleRefused
from maas.core.ids import new_id
from maas.core.settings import Settings
from maas.edge.export.spec import ExportResult, ExportSpec, Progress
from maas.edge.runtime.bundle.archive import hash_file, pack, verify
from maas.edge.runtime.bundle.manifest import Manifest, Part
from maas.edge.runtime.bundle.signing import load_or_make_key
from maas.edge.runtime.shelf.shelf import Shelf
from maas.edge.runtime.shelf.sources import HttpSource
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.finetune.registry import blob_key_of
from maas.serving.exports.maker import BundleMaker
from maas.serving.exports.queue import ExportQueue
from maas.serving.exports.sweeper import BundleSweeper
from maas.store.blobs import Blobs, open_blobs
from maas.store.bundles import BundleRepository
from maas.store.exports import ExportRepository
from tests.api.conftest import RunningGateway
from tests.fakes.adapters import tuned_model
from tests.unit.edge.runtime.test_bundle import write_graph

BASE = "smollm2-135m-instruct"
ROOMY = Machine(2, 2**36, 2**36, 2**40)


def pack_a_graph(asked: list[ExportSpec], spec: ExportSpec, report, on_start) -> ExportResult:
    """Stand for the steps: pack a graph of one product."""
    asked.append(spec)
    report(Progress(phase="building", percent=50, message="building"))
    folder = spec.work_dir / "bundle"
    folder.mkdir(parents=True)
    write_graph(folder)
    (folder / "tokenizer.json").write_bytes(bytes(100_000))
    roles: dict[str, Any] = {
        "model.onnx": "model",
        "model.onnx.data": "weights",
        "tokenizer.json": "tokenizer",
    }
    manifest = Manifest(
        schema_version=1,
        bundle_id="",
        name=spec.name,
        model_id=spec.model_id,
        base_model_id=spec.base_model_id,
        created_at=spec.created_at,
        precision=spec.precision,
        target=spec.target,
        task="generate",
        licence=spec.licence,
        lineage=spec.lineage,
        parts=tuple(
            Part(name, (folder / name).stat().st_size, hash_file(folder / name), role)
            for name, role in roles.items()
        ),
        ram_required_bytes=1,
        max_model_len=16,
        cost_card={},
        receipt={},
    )
    made = pack(folder, manifest, load_or_make_key(spec.signing_key), spec.out_path)
    return ExportResult(
        bundle_path=spec.out_path, bundle_id=made.bundle_id, manifest=msgspec.to_builtins(made)
    )


@dataclass
class Yard:
    """A project that exports, and the controller's queue."""

    gateway: RunningGateway
    client: Client
    key: str
    project_id: str
    queue: ExportQueue
    blobs: Blobs
    asked: list[ExportSpec]

    def export(self, **fields: object) -> dict:
        answer = self.client.post("/v1/exports", json={"model": BASE, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def made(self, **fields: object) -> dict:
        export_id = self.export(**fields)["id"]
        asyncio.run(self.queue.step())
        return self.client.get(f"/v1/exports/{export_id}").json()


@pytest.fixture
def yard(gateway: RunningGateway, smollm2_dir: Path) -> Iterator[Yard]:
    store, settings = gateway.store, Settings(home=gateway.home)
    weights = settings.weights_dir / BASE
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.symlink_to(smollm2_dir)
    organization = store.tenancy.organizations.find("default")
    project = store.tenancy.projects.create(organization.id, new_id("yard"))
    _, key = store.keys.create(project_id=project.id, name="k")
    gateway.wait_seen()
    asked: list[ExportSpec] = []
    maker = BundleMaker(
        settings=settings,
        catalog=load_catalog(settings.models_dir),
        tuned_models=store.tuned_models,
        blobs=open_blobs(settings),
        probe=lambda: ROOMY,
        num_training=lambda: 0,
        run=partial(pack_a_graph, asked),
    )
    exports = ExportRepository(store.database, store.clock)
    queue = ExportQueue(exports, maker, clock=store.clock)
    headers = {"Authorization": f"Bearer {key}"}
    with Client(base_url=gateway.url, headers=headers, timeout=10) as client:
        yield Yard(gateway, client, key, project.id, queue, maker.blobs, asked)
        for export in exports.unfinished():
            exports.cancel(export.project_id, export.id)


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
    model = tuned_model(yard.gateway.store, yard.project_id, base=BASE)
    for name in ADAPTER_NAMES:
        incoming = yard.blobs.begin()
        incoming.write(name.encode())
        yard.blobs.put(f"{blob_key_of(model.adapter_id or '')}/{name}", incoming)
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
