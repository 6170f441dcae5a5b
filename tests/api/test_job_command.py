"""``maas job`` against a gateway; the runner is this test."""

import io
import json
import threading
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from maas.cli.client import GatewayClient
from maas.cli.job_watch import curve, headline, watch
from maas.cli.main import app
from maas.core.errors import ConfigError, Conflict, MaasError, NotFound, Unavailable
from maas.store.job_records import JobChange, JobStatus, Telling

BASE = "smollm2-135m-instruct"
LINE = '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'


@pytest.fixture
def maas(gateway, tmp_path, monkeypatch):
    """Run ``maas job``; return the object it prints."""
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))

    def run(*arguments: str, code: int = 0, as_json: bool = True):
        where = ["--url", gateway.url, "--key", gateway.key]
        done = CliRunner().invoke(
            app, ["job", *arguments, *where, *(["--json"] if as_json else [])]
        )
        if isinstance(done.exception, MaasError):
            raise done.exception
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if as_json else done.stdout

    return run


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(LINE * 12)
    return str(path)


def run_job(gateway, job_id: str, status: JobStatus) -> None:
    """Do what a runner does, with two steps."""
    jobs = gateway.store.jobs
    attempt = jobs.take(job_id, seen_attempt=0).attempt
    for step, loss in ((1, 2.5), (2, 0.5)):
        seen = {"step": step, "num_steps": 2, "loss": loss, "tokens_per_s": 1234.0, "eta_s": 61.0}
        told = Telling(f"step:{step}", f"Step {step}", data={"step": step, "train_loss": loss})
        change = JobChange(status=JobStatus.RUNNING, tellings=(told,), progress=seen)
        jobs.write(job_id, attempt, change)
        time.sleep(0.3)
    error = {"code": "training_failed", "message": "out\x1b[31m of luck", "param": None}
    ending = JobChange(
        status=status, trained_tokens=9, error=error if status is JobStatus.FAILED else None
    )
    jobs.write(job_id, attempt, ending)


def test_file_is_uploaded_and_a_job_made_of_it_in_one_go(maas, data):
    job = maas(
        *("create", data, "--model", BASE, "--validation", data, "--suffix", "s", "--seed", "3"),
        *("--epochs", "2", "--batch-size", "auto", "--learning-rate-multiplier", "0.5"),
        *("--recipe", "lora", "--metadata", "team=a"),
    )
    assert job["hyperparameters"] == {
        "n_epochs": 2,
        "batch_size": "auto",
        "learning_rate_multiplier": 0.5,
    }
    assert (job["seed"], job["metadata"]) == (3, {"team": "a"})
    assert job["training_file"] != job["validation_file"]
    again = maas("create", job["training_file"], "--model", BASE, "--method", "dpo", "--beta", "1")
    assert again["training_file"] == job["training_file"]
    assert again["method"]["dpo"]["hyperparameters"]["beta"] == 1
    assert maas("get", job["id"]) == job
    assert [item["id"] for item in maas("list", "--limit", "2")["data"]] == [again["id"], job["id"]]
    assert job["id"] in maas("get", job["id"], as_json=False)
    assert maas("pause", job["id"])["status"] == "paused"
    assert maas("resume", job["id"])["status"] == "validating_files"
    assert maas("cancel", job["id"])["status"] == "cancelled"
    told = [event["message"] for event in maas("events", job["id"])["events"]]
    assert (told[0], told[-1]) == ("The job was cancelled", f"Created fine-tuning job: {job['id']}")
    assert maas("checkpoints", job["id"]) == {"checkpoints": []}
    with pytest.raises(Conflict):
        maas("pause", job["id"])


def test_what_cannot_be_done_says_why(maas, data, tmp_path):
    with pytest.raises(NotFound, match="ftjob-none"):
        maas("get", "ftjob-none")
    with pytest.raises(ConfigError, match=r"none\.jsonl"):
        maas("create", str(tmp_path / "none.jsonl"), "--model", BASE)
    with pytest.raises(ConfigError, match="want a number or auto"):
        maas("create", data, "--model", BASE, "--epochs", "many")
    with pytest.raises(Unavailable, match="make up"):
        GatewayClient("http://127.0.0.1:1", "k").get("/models")


@pytest.mark.parametrize(("status", "code"), [(JobStatus.SUCCEEDED, 0), (JobStatus.FAILED, 1)])
def test_watch_ends_as_the_job_does(gateway, maas, data, status, code):
    job = maas("create", data, "--model", BASE)
    runner = threading.Thread(target=run_job, args=(gateway, job["id"], status))
    runner.start()
    said = maas("watch", job["id"], "--interval", "0.1", code=code, as_json=False)
    runner.join()
    assert "Step 1" in said
    assert said.count("Step 2") == 1
    assert said.index("Created") < said.index("Step 1") < said.index("Step 2")
    assert "\x1b" not in said
    assert maas("watch", job["id"], code=code)["status"] == status


def test_watch_draws_a_curve_in_a_terminal(gateway, maas, data):
    job = maas("create", data, "--model", BASE)
    client = GatewayClient(gateway.url, gateway.key)
    runner = threading.Thread(target=run_job, args=(gateway, job["id"], JobStatus.SUCCEEDED))
    runner.start()
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=40)
    watched = watch(client, job["id"], console, interval_s=0.1)
    runner.join()
    assert watched.losses == {1: 2.5, 2: 0.5}
    for shown in ("step 1/2", "1,234 tokens/s", "1 min 01 s left", "2.5000 ┤", "0.5000 ┤"):
        assert shown in screen.getvalue()
    assert headline(watched.job) == "succeeded · step 2/2 · loss 0.5000 · 9 tokens trained"


def test_curve_falls_from_the_top_left_to_the_bottom_right():
    lines = curve([float(n) for n in range(100, 0, -1)], width=10, height=5)
    assert len(lines) == 5
    assert lines[0][0] != "\u2800"
    assert len(lines[0]) < len(lines[-1]) == 10
    assert lines[-1][0] == "\u2800"
    assert curve([1.0], width=10, height=2)[-1] != ""
