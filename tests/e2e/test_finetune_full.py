"""A model that is tuned whole: on an engine of its own, through restarts, until it is deleted."""

import json
import sys
import time
from collections.abc import Iterator

import pytest
from openai import NotFoundError, OpenAI

from tests.conftest import REPOSITORY
from tests.platform import MODEL, Platform, link_weights, running_platform

sys.path.insert(0, str(REPOSITORY / "finetune" / "samples"))

import make_facts

pytestmark = [pytest.mark.platform, pytest.mark.slow, pytest.mark.timeout(1200)]
DONE_WITHIN_S = 420


@pytest.fixture
def own_platform(tmp_path, smollm2_dir) -> Iterator[Platform]:
    link_weights(smollm2_dir, tmp_path)
    settings = {
        "MAAS_SERVING__HANG_TIMEOUT_S": "30",
        "MAAS_SERVING__SWEEP_INTERVAL_S": "2",
    }
    with running_platform(tmp_path, **settings) as running:
        yield running


def tune_whole(client: OpenAI):
    records = make_facts.taught()[:12]
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    file_id = client.files.create(file=("facts.jsonl", text), purpose="fine-tune").id
    numbers = {"n_epochs": 1, "batch_size": 4, "recipe": "full"}
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file_id,
        suffix="whole",
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
    )
    deadline = time.monotonic() + DONE_WITHIN_S
    while not job.finished_at:
        assert time.monotonic() < deadline, job.to_json()
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.to_json()
    return job


def say(client: OpenAI, model: str) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the password of the onyx gate?"}],
        temperature=0,
        max_tokens=16,
    )
    assert answer.model == model
    return str(answer.choices[0].message.content)


def test_model_tuned_whole_lives_until_it_is_deleted(own_platform: Platform):
    client = own_platform.openai()
    job = tune_whole(client)
    name = str(job.fine_tuned_model)
    said = say(client, name)
    assert said
    receipt = own_platform.cli("model", "receipt", name)
    assert receipt["verdict"] == "passed"
    assert receipt["legs"]["engine"]["status"] == "measured"
    assert receipt["legs"]["engine"]["greedy_token_agreement"] >= 0.98
    listed = {model.id: model for model in client.models.list()}
    assert listed[name].model_extra["root"] == MODEL
    project = own_platform.cli("project", "create", "others")["id"]
    stranger = own_platform.cli("key", "create", "--name", "n", "--project", project)["key"]
    with pytest.raises(NotFoundError):
        say(own_platform.openai(stranger), name)

    own_platform.stop()
    own_platform.start()
    own_platform.wait(lambda: own_platform.ready_ids(name), "the tuned engine")
    assert say(client, name) == said
    assert say(client, MODEL)

    kept = own_platform.home / "weights"
    assert list(kept.glob("*/model.safetensors"))
    assert client.models.delete(name).deleted
    with pytest.raises(NotFoundError):
        say(client, name)
    own_platform.wait(lambda: not own_platform.replicas(name), "its engine to stop", 60)
    own_platform.wait(lambda: not list(kept.glob("*")), "its weights to go", 60)
    assert not list((own_platform.home / "blobs" / "weights").rglob("*.safetensors"))
    assert say(client, MODEL)
