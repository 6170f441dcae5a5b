"""``maas model check``: the numbers of a start."""

import json

import pytest
from typer.testing import CliRunner

from maas.catalog.catalog import load_catalog
from maas.catalog.machine import Machine
from maas.cli import model
from maas.cli.main import app
from maas.serving.plan import make_plan
from maas.store.records import Deployment
from tests.conftest import REPOSITORY

GIB = 2**30
MODEL = "smollm2-135m-instruct"
MACHINE = Machine(
    num_cores=4, memory_total_bytes=64 * GIB, memory_available_bytes=40 * GIB, disk_free_bytes=GIB
)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    monkeypatch.setenv("MAAS_HOME", str(tmp_path))
    monkeypatch.setattr(model, "probe_machine", lambda _: MACHINE)


def _planned(**options):
    wanted = Deployment(
        id="dep-1",
        project_id="p",
        model_id=MODEL,
        engine="vllm",
        options=options,
        min_replicas=1,
        max_replicas=1,
        created_at=0.0,
    )
    return make_plan(wanted, load_catalog(REPOSITORY / "models")[MODEL], MACHINE)


@pytest.mark.parametrize("options", [{}, {"max_num_seqs": 4}, {"kv_cache_bytes": GIB}])
def test_check_says_what_a_start_takes(options):
    flags = [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    done = CliRunner().invoke(app, ["model", "check", MODEL, *flags, "--json"])
    assert done.exit_code == 0, done.output
    checked, plan = json.loads(done.stdout), _planned(**options)
    assert checked["total_bytes"] == plan.memory_bytes
    assert checked["kv_bytes"] == plan.spec.kv_cache_bytes
    assert (checked["dtype"], checked["max_num_seqs"]) == (plan.spec.dtype, plan.spec.max_num_seqs)
    assert checked["num_replicas_that_fit"] == 40 * GIB // plan.memory_bytes


def test_what_does_not_fit_ends_with_one_and_says_what_to_change():
    done = CliRunner().invoke(app, ["model", "check", "llama-2-13b-chat", "--dtype", "float32"])
    assert done.exit_code == 1
    assert "it does not fit" in done.output
    assert "GiB" in done.output
