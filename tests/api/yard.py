"""A project that exports: real gateway, queue, ledger and shelf; what makes bundles is short."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from httpx import Client

from maas.bootstrap.signing import make_signing
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import Machine
from maas.core.ids import new_id
from maas.core.settings import Settings
from maas.edge.export.charges import ExportLedger
from maas.edge.export.spec import ExportResult, ExportSpec, Progress
from maas.edge.runtime.bundle.archive import hash_file, pack
from maas.edge.runtime.bundle.manifest import Manifest, Part
from maas.edge.runtime.bundle.signing import private_key_of
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.finetune.registry import blob_key_of
from maas.ledger.books import Books
from maas.ledger.tariff import Tariff
from maas.serving.exports.maker import BundleMaker
from maas.serving.exports.queue import ExportQueue
from maas.store.adapters import TunedModel
from maas.store.blobs import Blobs, open_blobs
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
        "genai_config.json": "config",
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
    signing_key = private_key_of(spec.signing_key.get_secret_value())
    made = pack(folder, manifest, signing_key, spec.out_path)
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

    def tuned(self) -> TunedModel:
        """A tuned model of the project whose files are stored."""
        model = tuned_model(self.gateway.store, self.project_id, base=BASE)
        for name in ADAPTER_NAMES:
            incoming = self.blobs.begin()
            incoming.write(name.encode())
            self.blobs.put(f"{blob_key_of(model.adapter_id or '')}/{name}", incoming)
        return model

    def made(self, **fields: object) -> dict:
        export_id = self.export(**fields)["id"]
        asyncio.run(self.queue.step())
        return self.client.get(f"/v1/exports/{export_id}").json()


@contextmanager
def open_yard(gateway: RunningGateway, smollm2_dir: Path) -> Iterator[Yard]:
    """Open one of its own."""
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
        signing_key=make_signing(settings, store).private_key,
        run=partial(pack_a_graph, asked),
    )
    exports = ExportRepository(store.database, store.clock)
    database, clock = store.database, store.clock
    ledger = ExportLedger(database, clock, Books(database, clock), Tariff(database, clock))
    queue = ExportQueue(exports, maker, clock=clock, ends=ledger)
    headers = {"Authorization": f"Bearer {key}"}
    with Client(base_url=gateway.url, headers=headers, timeout=10) as client:
        yield Yard(gateway, client, key, project.id, queue, maker.blobs, asked)
        for export in exports.unfinished():
            ledger.cancel(export.project_id, export.id)
