"""What a bundle needs is measured, holds under load, and is asked for before anything is loaded."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import psutil
import pytest
from typer.testing import CliRunner

from maas.core.errors import DoesNotFit
from maas.edge.runtime.bench import Footprint, measure_footprint
from maas.edge.runtime.bundle.archive import verify
from maas.edge.runtime.bundle.manifest import Manifest
from maas.edge.runtime.cli import running
from maas.edge.runtime.cli.main import app
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.memory import MARGIN, check_memory, memory_need, need_of
from tests.fakes.bundles import Made, make_bundle

MIB = 1 << 20
MB = 10**6
DEFAULT = EngineOptions()


def of_card(forge: Callable[..., Made], **card: Any) -> Manifest:
    return verify(forge("1", cost_card=card, max_model_len=4096).path, None).manifest


@pytest.fixture
def forge(tiny: Path, tmp_path: Path) -> Callable[..., Made]:
    def make(tag: str, *, graph: Path = tiny, **changes: Any) -> Made:
        out = tmp_path / f"{tag}.maas"
        return make_bundle(graph, out, key=tmp_path / "key", tag=tag, **changes)

    return make


@pytest.mark.parametrize(
    ("options", "kv_bytes", "prefix_bytes"),
    [
        # Eight of 4,096 tokens, 10 kB each, are less than a gibibyte.
        (DEFAULT, 8 * 4096 * 10_000, 256 * MIB),
        (replace(DEFAULT, max_num_seqs=1), 4096 * 10_000, 256 * MIB),
        (replace(DEFAULT, max_model_len=1000), 8 * 1000 * 10_000, 256 * MIB),
        (replace(DEFAULT, max_model_len=9999), 8 * 4096 * 10_000, 256 * MIB),
        (replace(DEFAULT, kv_cache_bytes=64 * MIB), 64 * MIB, 256 * MIB),
        (replace(DEFAULT, prefix_cache_bytes=0), 8 * 4096 * 10_000, 0),
        # The engine takes no less than 256 tokens.
        (replace(DEFAULT, kv_cache_bytes=MIB), 256 * 10_000, 256 * MIB),
    ],
)
def test_the_flags_decide_what_is_needed(options, kv_bytes, prefix_bytes):
    need = memory_need(100 * MB, 10_000, 4096, options)
    assert need.model_bytes == int(100 * MB * MARGIN)
    assert (need.kv_bytes, need.prefix_bytes) == (kv_bytes, prefix_bytes)
    assert need.total_bytes == need.model_bytes + kv_bytes + prefix_bytes


def test_a_model_of_embeddings_keeps_no_keys_and_values():
    assert memory_need(100 * MB, 0, 512, DEFAULT).total_bytes == int(100 * MB * MARGIN)


@pytest.mark.parametrize("have_mb", [140, 200, 300, 437, 438, 450, 600, 706])
def test_the_flags_that_are_named_do_fit(forge, have_mb):
    manifest = of_card(forge, ram_model_bytes=100 * MB, kv_bytes_per_token=10_000)
    numbers = (
        r"tiny1 needs 706 MB of memory \(model 110, keys and values 328, remembered prompts 268\)"
    )
    with pytest.raises(DoesNotFit, match=f"{numbers}; {have_mb} MB are free") as caught:
        check_memory(manifest, DEFAULT, lambda: have_mb * MB)
    words = caught.value.message.partition("it fits with ")[2].split()
    assert words, caught.value.message
    sizes = dict(zip(words[::2], (int(word) * MIB for word in words[1::2]), strict=True))
    names = {"--kv-cache-mb": "kv_cache_bytes", "--prefix-cache-mb": "prefix_cache_bytes"}
    lower = replace(DEFAULT, **{names[flag]: size for flag, size in sizes.items()})
    check_memory(manifest, lower, lambda: have_mb * MB)


@pytest.mark.parametrize("have_mb", [10, 109, 112])
def test_where_no_flag_helps_that_is_said(forge, have_mb):
    manifest = of_card(forge, ram_model_bytes=100 * MB, kv_bytes_per_token=10_000)
    with pytest.raises(DoesNotFit, match="no flag makes it fit"):
        check_memory(manifest, DEFAULT, lambda: have_mb * MB)


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"ram_model_bytes": "1"},
        {"ram_model_bytes": 5, "kv_bytes_per_token": -1},
        {"ram_model_bytes": True, "kv_bytes_per_token": 0},
    ],
)
def test_a_card_without_the_figures_leaves_what_the_maker_says(forge, card):
    manifest = of_card(forge, **card)
    assert need_of(manifest, DEFAULT).total_bytes == manifest.ram_required_bytes


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a command on a device where so many MB are free."""
    monkeypatch.setenv("MAAS_EDGE_HOME", str(tmp_path / "home"))

    def run(free_mb: int, *arguments: str | Path) -> None:
        memory = SimpleNamespace(available=free_mb * MB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        done = CliRunner().invoke(app, [*map(str, arguments)])
        if done.exception is not None:
            raise done.exception

    return run


@pytest.mark.parametrize("command", ["run", "serve"])
def test_a_bundle_is_refused_before_it_is_loaded(edge, forge, monkeypatch, command):
    card = {"ram_model_bytes": 100 * MB, "kv_bytes_per_token": 100_000}
    made = forge("1", cost_card=card)
    opened: list[EngineOptions] = []

    def never(_folder: Path, _name: str, options: EngineOptions, *_: object, **__: object) -> None:
        opened.append(options)
        raise DoesNotFit("far enough")

    monkeypatch.setattr(running, "open_served", never)
    with pytest.raises(DoesNotFit, match="no flag makes it fit"):
        edge(50, command, made.path)
    edge(4000, "pull", made.path)
    with pytest.raises(DoesNotFit, match=r"needs .* it fits with .*--prefix-cache-mb"):
        edge(200, command)
    assert opened == []
    with pytest.raises(DoesNotFit, match="far enough"):
        edge(200, command, "--kv-cache-mb", "30", "--prefix-cache-mb", "40")
    (options,) = opened
    assert (options.kv_cache_bytes, options.prefix_cache_bytes) == (30 * MIB, 40 * MIB)


def test_a_bundle_that_has_no_memory_is_not_even_tried_and_the_one_in_use_stays(edge, forge):
    edge(4000, "pull", forge("1").path)
    big = forge("2", cost_card={"ram_model_bytes": 300 * MB, "kv_bytes_per_token": 10_000})
    with pytest.raises(DoesNotFit, match="tiny2 needs"):
        edge(320, "pull", big.path)
    edge(4000, "verify")
    edge(400, "pull", big.path)


@pytest.fixture
def served(wide: Path, forge, tmp_path: Path) -> Iterator[tuple[int, int, str]]:
    """A device's server on the wide model: what it may take, its process, its address."""
    footprint: Footprint = measure_footprint(wide, 1)
    assert footprint.kv_bytes_per_token == 4096
    card = footprint.plain()
    made = forge("", graph=wide, cost_card=card, max_model_len=4096, model_id="wide")
    options = EngineOptions(kv_cache_bytes=24 * MIB, prefix_cache_bytes=32 * MIB)
    need = need_of(verify(made.path, None).manifest, options).total_bytes
    command = [sys.executable, "-m", "maas.edge.runtime.cli", "serve", str(made.path)]
    command += ["--port", "0", "--threads", "1", "--cool"]
    command += ["--kv-cache-mb", "24", "--prefix-cache-mb", "32"]
    environment = {**os.environ, "MAAS_EDGE_HOME": str(tmp_path / "home")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr
        lines = iter(server.stderr.readline, "")
        ready = next(line for line in lines if "answers on" in line)
        yield need, server.pid, ready.split()[-1]
        server.terminate()
        assert server.wait(20) == 0


async def load(url: str) -> list[str | None]:
    """Ask for six long prompts at once."""

    async def ask(client: openai.AsyncOpenAI, place: int) -> str | None:
        prompt = [(31 * n + 7 * place) % 256 for n in range(2000 + 250 * place)]
        answer = await client.completions.create(
            model="wide", prompt=prompt, max_tokens=200, temperature=0, logit_bias={"257": -100}
        )
        return answer.choices[0].finish_reason

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        return await asyncio.gather(*(ask(client, place) for place in range(6)))


def test_a_bundle_under_load_takes_no_more_than_it_is_said_to(served):
    need, pid, url = served
    assert asyncio.run(load(url)) == ["length"] * 6
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    assert need - 60 * MIB < peak <= need, "and hardly less: it is no guess"
