"""Tiny bundles that differ in their chat template, and a fleet to run them in."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from maas.edge.runtime.bundle.archive import hash_file, pack
from maas.edge.runtime.bundle.manifest import Manifest, Part
from maas.edge.runtime.bundle.signing import load_or_make_key
from tests.fakes.device import USER, Device
from tests.fakes.gateway import FakeGateway, fake_gateway


@dataclass(frozen=True)
class Made:
    """A bundle's file, its id, and how many tokens its template makes of a chat."""

    path: Path
    bundle_id: str
    num_prompt_tokens: int


def make_bundle(
    graph: Path, out: Path, *, key: Path, tag: str = "", big_bytes: int = 0, **changes: Any
) -> Made:
    """Pack the tiny model with a template of its own."""
    folder = out.with_suffix(".source")
    shutil.copytree(graph, folder)
    if "broken_graph" in changes:
        (folder / "model.onnx").write_bytes(b"")
        del changes["broken_graph"]
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(tag + template)
    if big_bytes:
        (folder / "big.bin").write_bytes(os.urandom(big_bytes))
    files = sorted(path for path in folder.iterdir() if path.is_file())
    parts = tuple(Part(p.name, p.stat().st_size, hash_file(p), "config") for p in files)
    manifest = Manifest(
        schema_version=1,
        bundle_id="",
        name=f"tiny{tag}",
        model_id="tiny",
        base_model_id="tiny",
        created_at=float(len(tag)),
        precision="int8",
        target="cpu",
        task="generate",
        licence={},
        lineage={},
        parts=parts,
        ram_required_bytes=1 << 20,
        max_model_len=512,
        cost_card={},
        receipt={},
    )
    manifest = msgspec.structs.replace(manifest, **changes)
    made = pack(folder, manifest, load_or_make_key(key), out)
    return Made(out, made.bundle_id, len(tag) + len(f"[user]{USER[0]['content']}[a]"))


@pytest.fixture(scope="session")
def forge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Makes bundles of one maker; ``key`` names another."""
    root = tmp_path_factory.mktemp("bundles")

    def make(tag: str, *, key: str = "key", **changes: Any) -> Made:
        out = root / f"{len(list(root.glob('*.maas')))}.maas"
        return make_bundle(tiny, out, key=root / key, tag=tag, **changes)

    return make


@pytest.fixture(scope="session")
def one(forge: Callable[..., Made]) -> Made:
    return forge("1", big_bytes=1 << 20)


@pytest.fixture(scope="session")
def two(forge: Callable[..., Made]) -> Made:
    return forge("22", big_bytes=1 << 20)


@pytest.fixture
def gateway(one: Made, two: Made) -> Iterator[FakeGateway]:
    with fake_gateway() as running:
        running.codes["code"] = None
        for made in (one, two):
            running.bundles[made.bundle_id] = made.path
        yield running


@pytest.fixture
def device(gateway: FakeGateway, tmp_path: Path) -> Iterator[Device]:
    """An enrolled device whose agent does not run yet."""
    made = Device(tmp_path / "device")
    done = made.cli("enrol", gateway.url, "--code", "code", "--name", "d")
    assert done.returncode == 0, done.stderr
    yield made
    made.client.close()
    if made.process is not None:
        made.kill()
