"""A real agent of a device against a real gateway: enrolled, updated, rolled out, stood in for."""

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from httpx import Client, Response

from maas.bootstrap.fleet import make_fleet_keeper
from maas.bootstrap.signing import prepare_signing
from maas.bootstrap.store import open_store
from maas.core.settings import Settings
from maas.edge.export.build import BuildOptions, build
from maas.edge.runtime.bundle.archive import verify
from maas.edge.runtime.bundle.signing import load_or_make_key, public_key_of
from maas.edge.runtime.shelf.shelf import Shelf
from maas.serving.exports.signing import KEY_FILE
from maas.serving.fleet import FleetKeeper
from maas.store.blobs import open_blobs
from maas.store.export_records import MadeBundle, NewExport
from maas.store.exports import ExportRepository
from maas.store.roles import ORGANIZATION_SCOPE
from maas.store.state import ensure_project
from tests.api.conftest import RunningGateway
from tests.api.test_fleet_size import gateway_process
from tests.fakes.bundles import Made, make_bundle
from tests.fakes.device import Device
from tests.fakes.engine import fake_engine
from tests.unit.edge.conftest import write_tiny_weights

BASE = "smollm2-135m-instruct"
CLOUD_MODEL = "tiny-cloud"
LONG = [{"role": "user", "content": "x" * 600}]


@dataclass
class Fleet:
    """A gateway with its operator's client, and a device that is enrolled there."""

    gateway: RunningGateway
    client: Client
    keeper: FleetKeeper
    device: Device
    folder: Path
    device_id: str = ""

    def post(self, path: str, body: dict | None = None) -> dict:
        answer = self.client.post(f"/v1/devices{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, path: str) -> dict:
        answer = self.client.get(f"/v1/devices{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def bundle(self, tag: str, **changes: object) -> Made:
        """Make a bundle, and have the platform hold it as if an export had made it."""
        out = self.folder / f"{tag}.maas"
        made = make_bundle(
            self.folder / "graph", out, key=self.folder / KEY_FILE, tag=tag, **changes
        )
        store = self.gateway.store
        exports = ExportRepository(store.database, store.clock)
        new = NewExport(
            self.gateway.project_id, "key", secrets.token_hex(4), BASE, BASE,
            name=tag, target="cpu", precision="int8",
        )  # fmt: skip
        export = exports.create(new)
        exports.take(export.id, seen_attempt=0)
        blobs = open_blobs(Settings(home=self.gateway.home))
        blob = blobs.put_file(f"bundles/{made.bundle_id}", made.path)
        manifest = msgspec.to_builtins(verify(made.path, None).manifest)
        result = MadeBundle(made.bundle_id, tag, blob.key, blob.size_bytes, manifest)
        exports.succeed(export.id, 1, result)
        return made

    def enrol(self) -> None:
        self.post("/groups", {"name": "kitchens", "heartbeat_s": 1})
        code = self.post("/enrolment_codes", {"group": "kitchens", "name": "kettle"})["code"]
        done = self.device.cli("enrol", self.gateway.url, "--code", code, "--json")
        assert done.returncode == 0, done.stderr
        self.device_id = json.loads(done.stdout)["device_id"]

    def roll_out(self, made: Made) -> dict:
        """Roll a bundle out to all at once, and wait for its end."""
        stages = [{"percent": 100, "min_s": 0}]
        body = {"channel": "stable", "bundle_id": made.bundle_id, "stages": stages}
        rollout_id = self.post("/rollouts", body)["id"]

        def ended() -> dict | None:
            self.keeper.step()
            shown = self.get(f"/rollouts/{rollout_id}")
            return None if shown["status"] == "running" else shown

        return self.device.wait(ended, "the rollout's end")

    def ensure_running(self) -> None:
        if self.device.process is None:
            self.post("/channels/stable", {"bundle_id": self.bundle("4444").bundle_id})
            self.device.start()
        self.device.wait_answer()

    def wait_for_cloud(self) -> Response:
        """Ask for what needs the cloud until it answers: the next heartbeat tells of it."""

        def asked() -> Response | None:
            answer = self.device.chat(messages=LONG)
            return answer if answer.headers["x-maas-served-by"] == "cloud" else None

        return self.device.wait(asked, "the cloud")

    def wait(self, is_done: Callable[[], object], what: str) -> None:
        self.device.wait(is_done, what)

    def all_events(self) -> list[dict]:
        return self.get(f"/{self.device_id}/events")["data"]

    def events(self) -> list[str]:
        return [item["type"] for item in self.all_events()]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    _make_graph(folder)
    settings = Settings(home=folder)
    store = open_store(settings)
    # As a platform of before left it: its bundles are signed by a file.
    load_or_make_key(folder / KEY_FILE)
    prepare_signing(settings, store)
    project_id = ensure_project(store.database, store.clock)
    with gateway_process(folder) as url, fake_engine() as engine:
        _, key = store.keys.create(
            project_id=project_id, name="operator", scopes=(ORGANIZATION_SCOPE,)
        )
        headers = {"Authorization": f"Bearer {key}"}
        with Client(base_url=url, headers=headers, timeout=30) as client:
            gateway = RunningGateway(url, "", key, folder, store, project_id, client)
            gateway.deploy(engine, model=CLOUD_MODEL)
            keeper = make_fleet_keeper(settings, store)
            fleet = Fleet(gateway, client, keeper, Device(folder / "device"), folder)
            fleet.enrol()
            yield fleet
            assert fleet.device.stop() == 0
            fleet.device.client.close()
    store.database.close()


def _make_graph(folder: Path) -> None:
    weights, graph = folder / "weights", folder / "graph"
    weights.mkdir()
    write_tiny_weights(weights)
    build(weights, graph, BuildOptions(precision="int8", block_size=32))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (graph / name).write_bytes((weights / name).read_bytes())


def test_a_device_takes_its_first_bundle_then_a_rollout_and_halts_a_bad_one(fleet: Fleet) -> None:
    ours = public_key_of(load_or_make_key(fleet.folder / KEY_FILE))
    assert Shelf(fleet.device.home).trusted() == {ours}
    one, two = fleet.bundle("1"), fleet.bundle("22")
    fleet.post("/channels/stable", {"bundle_id": one.bundle_id})
    fleet.device.start()
    fleet.wait(lambda: "update_succeeded" in fleet.events(), "the first success")
    assert fleet.device.num_prompt_tokens() == one.num_prompt_tokens
    shown = fleet.get(f"/{fleet.device_id}")
    assert (shown["name"], shown["is_online"]) == ("kettle", True)
    assert (shown["reported"]["bundle_id"], shown["reported"]["state"]) == (one.bundle_id, "ok")
    assert shown["reported"]["speed"]["decode_tok_s"] > 0
    assert fleet.roll_out(two)["status"] == "completed"
    assert fleet.device.num_prompt_tokens() == two.num_prompt_tokens
    assert fleet.get("/channels/stable")["bundle_id"] == two.bundle_id
    halted = fleet.roll_out(fleet.bundle("333", broken_graph=True))
    assert (halted["status"], halted["counts"]["failed"]) == ("halted", 1)
    assert fleet.device.num_prompt_tokens() == two.num_prompt_tokens
    failed = next(e for e in fleet.all_events() if e["type"] == "update_failed")
    assert "onnxruntime does not load it" in str(failed)


def test_what_is_too_long_is_answered_by_the_gateway(fleet: Fleet) -> None:
    fleet.ensure_running()
    refused = fleet.device.chat(messages=LONG)
    assert (refused.status_code, refused.headers["x-maas-served-by"]) == (400, "device")
    fleet.post("/groups/kitchens", {"fallback_model": CLOUD_MODEL})
    place = fleet.wait_for_cloud()
    assert place.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
    stream = fleet.device.chat(messages=LONG, stream=True)
    assert (stream.status_code, stream.headers["x-maas-served-by"]) == (200, "cloud")
    assert stream.text.endswith("data: [DONE]\n\n")
    assert fleet.device.chat().headers["x-maas-served-by"] == "device"


def test_a_retired_device_goes_on_by_itself(fleet: Fleet) -> None:
    fleet.ensure_running()
    assert fleet.client.delete(f"/v1/devices/{fleet.device_id}").status_code == 200
    fleet.wait(
        lambda: fleet.device.chat(messages=LONG).status_code == 503, "the cloud to be closed to it"
    )
    refused = fleet.device.chat(messages=LONG)
    assert refused.headers["x-maas-served-by"] == "device"
    assert "key" in refused.json()["error"]["message"], refused.text
    assert fleet.device.chat().headers["x-maas-served-by"] == "device"
