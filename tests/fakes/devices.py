"""A fleet for tests: bundles that nobody made, and devices that tell what a test wants."""

import hashlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from httpx import Client, Response

from maas.bootstrap.store import Store
from maas.core.settings import Settings
from maas.store.blobs import open_blobs
from maas.store.export_records import MadeBundle, NewExport
from maas.store.exports import ExportRepository

BASE = "smollm2-135m-instruct"


def made_bundle(store: Store, project_id: str, home: Path, name: str) -> str:
    """Write down a bundle whose bytes are its own id; return it."""
    exports = ExportRepository(store.database, store.clock)
    new = NewExport(project_id, "key", "r", BASE, BASE, name=name, target="cpu", precision="int4")
    made = exports.create(new)
    exports.take(made.id, seen_attempt=0)
    bundle_id = hashlib.sha256(made.id.encode()).hexdigest()
    blobs = open_blobs(Settings(home=home))
    incoming = blobs.begin()
    incoming.write(bundle_id.encode())
    blob = blobs.put(f"bundles/{bundle_id}", incoming)
    exports.succeed(
        made.id, 1, MadeBundle(bundle_id, name, blob.key, blob.size_bytes, {"name": name})
    )
    return bundle_id


def heartbeat_of(**fields: Any) -> dict[str, Any]:
    """Return a heartbeat with every field, as the contract has it."""
    return {
        "agent_version": "0.1.0",
        "started_at": 1_000_000.0,
        "bundle_id": None,
        "previous_bundle_id": None,
        "state": "ok",
        "update": None,
        "machine": {"system": "Linux", "processor": "arm", "num_cpus": 4, "ram_bytes": 2**32},
        "memory": {"rss_bytes": 2**28, "available_bytes": 2**31},
        "speed": {"load_s": 0.5, "prefill_tok_s": 300.0, "decode_tok_s": 40.0},
        "energy": {
            "joules_per_token": None,
            "watts": None,
            "battery_percent": 80.0,
            "is_charging": False,
            "note": "no counter",
        },
        "pace": {"share": 1.0, "reason": "cool", "temperature_c": 48.5},
        "counters": {
            "requests_total": 1,
            "completion_tokens_total": 7,
            "fallbacks_total": 0,
            "queued": 0,
        },
        "errors": [],
        **fields,
    }


@dataclass
class FakeDevice:
    """A device that updates as soon as it is told to, well or not.

    Attributes:
        fails: Bundles that it cannot load.
        wanted: Every bundle it was ever told to run.
    """

    url: str
    id: str
    key: str
    runs: str | None = None
    fails: frozenset[str] = frozenset()
    wanted: list[str] = field(default_factory=list)
    update: dict[str, Any] | None = None

    def beat(self, **fields: Any) -> dict[str, Any]:
        answer = self.try_beat(**fields)
        assert answer.status_code == 200, answer.text
        return self.hear(answer.json())

    def try_beat(self, **fields: Any) -> Response:
        body = heartbeat_of(bundle_id=self.runs, update=self.update, **fields)
        with Client(base_url=self.url, timeout=30) as client:
            headers = {"Authorization": f"Bearer {self.key}"}
            return client.post("/v1/devices/heartbeat", json=body, headers=headers)

    def hear(self, orders: dict[str, Any]) -> dict[str, Any]:
        """Do what is wanted; the next heartbeat tells of it."""
        desired = orders["desired"]
        self.update = None
        if desired is None or desired["bundle_id"] == self.runs:
            return orders
        bundle_id = desired["bundle_id"]
        if bundle_id not in self.wanted:
            self.wanted.append(bundle_id)
        is_bad = bundle_id in self.fails
        self.update = {
            "bundle_id": bundle_id,
            "attempt": desired["attempt"],
            "status": "failed" if is_bad else "succeeded",
            "phase": "trial" if is_bad else None,
            "error": "it answered nothing" if is_bad else None,
            "percent": None,
        }
        if not is_bad:
            self.runs = bundle_id
        return orders


def enrolled(client: Client, url: str, **code: Any) -> FakeDevice:
    """Enrol a device over HTTP."""
    made = client.post("/v1/devices/enrolment_codes", json=code)
    assert made.status_code == 200, made.text
    answer = client.post(
        "/v1/devices/enrol",
        json={"code": made.json()["code"], "nonce": secrets.token_hex(16)},
        headers={"Authorization": ""},
    )
    assert answer.status_code == 200, answer.text
    return FakeDevice(url, answer.json()["device"]["id"], answer.json()["key"])
