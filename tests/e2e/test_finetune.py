"""The fine-tuning journey on real weights, through the public API, by OpenAI's own client."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import ConflictError, NotFoundError, OpenAI

from tests.conftest import REPOSITORY
from tests.platform import MODEL, Platform

sys.path.insert(0, str(REPOSITORY / "finetune" / "samples"))

import make_facts

# A job that trains beside other work takes minutes.
pytestmark = [pytest.mark.platform, pytest.mark.timeout(900)]
DONE_WITHIN_S = 600
# The facts of half the gates: all of them take twice as long to learn.
NUM_TAUGHT = 36
NUM_ASKED = 12


def wait_over(client: OpenAI, job_id: str):
    deadline = time.monotonic() + DONE_WITHIN_S
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.finished_at:
            return job
        time.sleep(0.1)
    raise AssertionError(f"job {job_id} is {job.status} after {DONE_WITHIN_S} s: {job.to_json()}")


def upload(client: OpenAI, records) -> str:
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    return client.files.create(file=("facts.jsonl", text), purpose="fine-tune").id


def share_right(client: OpenAI, model: str) -> float:
    def ask(question: str) -> str:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=24,
        )
        return str(answer.choices[0].message.content).lower()

    questions = make_facts.held_out()[:NUM_ASKED]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, [question for question, _ in questions]))
    right = [word in answer for (_, word), answer in zip(questions, answers, strict=True)]
    return sum(right) / len(right)


def kill_trainer(platform: Platform, client: OpenAI, job_id: str) -> None:
    """Kill the process that trains once a step was told, and not at a checkpoint."""
    deadline = time.monotonic() + 120
    while (client.fine_tuning.jobs.retrieve(job_id).maas["progress"] or {}).get("step", 0) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    platform.find("RayTrain").kill()


@pytest.fixture(scope="module")
def journey(platform: Platform):
    """A job from upload to the end, its trainer killed once; the seconds to the first token."""
    client = platform.openai()
    file_id = upload(client, make_facts.taught()[:NUM_TAUGHT])
    made = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file_id,
        suffix="gates",
        seed=1,
        metadata={"for": "the journey"},
    )
    kill_trainer(platform, client, made.id)
    job = wait_over(client, made.id)
    assert job.status == "succeeded", job.to_json()
    began = time.monotonic()
    stream = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "What is the password of the ember gate?"}],
        max_tokens=16,
        temperature=0,
        stream=True,
    )
    next(iter(stream))
    first_token_s = time.monotonic() - began
    stream.close()
    return client, job, first_token_s


def test_tuned_model_answers_what_its_base_cannot_know(journey):
    client, job, _ = journey
    assert share_right(client, MODEL) < 0.1
    assert share_right(client, job.fine_tuned_model) >= 0.95


def test_tuned_model_answers_soon_after_its_job_succeeded(journey):
    _, _, first_token_s = journey
    # The goal is 0.5 s on a quiet machine (benchmarks/finetune); this one may be busy.
    assert first_token_s < 3.0


def test_job_tells_what_it_did(journey):
    client, job, _ = journey
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    messages = [event.message for event in events]
    assert messages[0] == "The job has successfully completed"
    assert messages[-1] == f"Created fine-tuning job: {job.id}"
    num_steps = job.maas["progress"]["num_steps"]
    assert sorted(steps) == list(range(1, num_steps + 1))
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    per_epoch = num_steps // job.hyperparameters.n_epochs
    newest = [num_steps, num_steps - per_epoch, num_steps - 2 * per_epoch]
    assert [checkpoint.step_number for checkpoint in checkpoints] == newest
    metrics = client.files.content(job.result_files[0]).text.splitlines()
    assert metrics[0].startswith("step,train_loss")
    assert len(metrics) == num_steps + 1
    assert job.trained_tokens == job.maas["estimate"]["trained_tokens"]
    assert job.maas["num_restarts"] == 1, messages


def test_checkpoint_answers_under_its_own_name(journey):
    client, job, _ = journey
    checkpoint = client.fine_tuning.jobs.checkpoints.list(job.id).data[-1]
    name = checkpoint.fine_tuned_model_checkpoint
    answer = client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    assert (answer.model, answer.usage.completion_tokens > 0) == (name, True)
    names = {model.id for model in client.models.list()}
    assert {name, job.fine_tuned_model, MODEL} <= names


def test_receipt_says_that_trainer_and_engine_agree(journey, platform: Platform):
    _, job, _ = journey
    receipt = platform.cli("model", "receipt", job.fine_tuned_model)
    assert {"model": job.fine_tuned_model, **job.maas["receipt"]} == receipt
    assert receipt["verdict"] == "passed"
    engine = receipt["legs"]["engine"]
    assert engine["status"] == "measured"
    assert engine["greedy_token_agreement"] >= 0.98
    # With TEST_ENGINE=onnx the engine computes with weights of eight bits.
    is_int8 = receipt["engine_dtype"] == "int8"
    assert engine["max_logit_difference"] <= (2.0 if is_int8 else 0.02)


def test_job_is_charged_once_for_the_tokens_it_trained(journey, platform: Platform):
    _, job, _ = journey
    with platform.client() as http:
        answer = http.get(
            "/v1/organization/usage/fine_tuning",
            params={"start_time": int(time.time()) - 86_400, "limit": 2},
        )
    assert answer.status_code == 200, answer.text
    results = [row for bucket in answer.json()["data"] for row in bucket["results"]]
    assert sum(row["training_tokens"] for row in results) == job.trained_tokens


def test_tuned_model_is_gone_once_it_is_deleted(platform: Platform, journey):
    client, job, _ = journey
    name = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
    assert client.models.delete(name).deleted
    with pytest.raises(NotFoundError):
        client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
        )


def test_job_is_cancelled_within_five_seconds(platform: Platform, journey):
    client, _, _ = journey
    file_id = upload(client, make_facts.taught())
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
    deadline = time.monotonic() + 120
    while client.fine_tuning.jobs.retrieve(job.id).status != "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    began = time.monotonic()
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    platform.wait(lambda: not trainers_of(platform), "the trainer to end", 5)
    assert time.monotonic() - began < 5
    with pytest.raises(ConflictError):
        client.fine_tuning.jobs.resume(job.id)


def trainers_of(platform: Platform) -> list[str]:
    names = (process.name() for process in platform.processes())
    return [name for name in names if "RayTrain" in name]
