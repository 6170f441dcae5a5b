"""A real agent against a fake gateway: one process, as its users see it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.bundles import Made
from tests.fakes.device import Device
from tests.fakes.gateway import FALLBACK_MODEL, FakeGateway, fake_gateway

LONG = [{"role": "user", "content": "x" * 600}]
QUEUE = {"x-maas-when-offline": "queue"}


@pytest.fixture(scope="module")
def shared(
    one: Made, two: Made, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Device, FakeGateway]]:
    """A device that began without a bundle, and runs the first one."""
    with fake_gateway() as gateway:
        gateway.codes["code"] = None
        gateway.bundles |= {made.bundle_id: made.path for made in (one, two)}
        device = Device(tmp_path_factory.mktemp("shared") / "device")
        assert device.cli("enrol", gateway.url, "--code", "code").returncode == 0
        gateway.fallback_model = None
        device.start()
        refused = device.chat()
        assert (refused.status_code, refused.headers["x-maas-served-by"]) == (503, "device")
        assert "no bundle is loaded" in refused.json()["error"]["message"]
        gateway.want(one.bundle_id)
        gateway.wait(lambda: gateway.reports("succeeded", one.bundle_id), "the first bundle")
        assert gateway.heartbeats[0]["state"] == "idle"
        yield device, gateway
        assert device.stop() == 0
        device.client.close()


@pytest.fixture
def gateway(shared: tuple[Device, FakeGateway]) -> FakeGateway:
    gateway = shared[1]
    gateway.status = 200
    gateway.answer_delay_s = 0.0
    gateway.fallback_model = FALLBACK_MODEL
    return gateway


@pytest.fixture
def device(shared: tuple[Device, FakeGateway], gateway: FakeGateway, one: Made) -> Device:
    """It runs the first bundle, and nothing of other tests is left."""
    device = shared[0]
    if device.process is None:
        device.start()
    gateway.want(one.bundle_id)
    device.wait(lambda: device.num_prompt_tokens() == one.num_prompt_tokens, "the first bundle")
    gateway.wait_beats(3)
    for seen in (gateway.heartbeats, gateway.requests, gateway.headers):
        seen.clear()
    gateway.wait_beats(1)
    return device


def place_of(answer) -> tuple[int, str]:
    return answer.status_code, answer.headers["x-maas-served-by"]


def test_an_update_is_taken_under_running_requests(device, gateway, one, two):
    seen: list[tuple[tuple[int, str], int]] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            answer = device.chat(max_tokens=60)
            seen.append((place_of(answer), answer.json()["usage"]["prompt_tokens"]))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    gateway.want(two.bundle_id, 1, "rollout-1")
    gateway.wait(lambda: gateway.reports("succeeded", two.bundle_id), "the second bundle")
    device.wait(lambda: seen[-1][1] == two.num_prompt_tokens, "answers of the new one")
    is_over.set()
    for thread in threads:
        thread.join()
    assert {place for place, _ in seen} == {(200, "device")}
    assert {tokens for _, tokens in seen} == {one.num_prompt_tokens, two.num_prompt_tokens}
    gateway.wait_beats()
    last = gateway.heartbeats[-1]
    assert (last["bundle_id"], last["previous_bundle_id"]) == (two.bundle_id, one.bundle_id)
    assert (last["state"], last["update"]) == ("ok", None)
    assert all(value > 0 for value in last["speed"].values())
    assert last["memory"]["rss_bytes"] > 0
    assert last["pace"] == {"share": 1.0, "reason": "full", "temperature_c": None}
    assert last["counters"]["requests_total"] >= len(seen)
    assert gateway.reports("succeeded") == [
        {"bundle_id": two.bundle_id, "attempt": 1, "status": "succeeded", "phase": None,
         "error": None, "percent": None}
    ]  # fmt: skip


def broken_graph(forge: Callable[..., Made], _: Path) -> Made:
    return forge("graph", broken_graph=True)


def wrong_signature(forge: Callable[..., Made], _: Path) -> Made:
    return forge("theirs", key="other")


def truncated(forge: Callable[..., Made], tmp_path: Path) -> Made:
    return truncated_to(forge("cut", big_bytes=1 << 20), tmp_path)


def truncated_to(made: Made, tmp_path: Path) -> Made:
    (tmp_path / "cut.maas").write_bytes(made.path.read_bytes()[:-500_000])
    return Made(tmp_path / "cut.maas", made.bundle_id, made.num_prompt_tokens)


@pytest.mark.parametrize(
    ("make", "phase"),
    [(broken_graph, "trial"), (wrong_signature, "verify"), (truncated, "pull")],
)
def test_a_broken_bundle_fails_once_and_the_old_one_answers(
    device, gateway, forge, one, tmp_path, make, phase
):
    made = make(forge, tmp_path)
    gateway.bundles[made.bundle_id] = made.path
    gateway.want(made.bundle_id, 1)
    (failed,) = gateway.wait(lambda: gateway.reports("failed"), "the failure")
    assert (failed["bundle_id"], failed["attempt"], failed["phase"]) == (made.bundle_id, 1, phase)
    assert failed["error"]
    assert device.num_prompt_tokens() == one.num_prompt_tokens
    num_sent = gateway.num_sent
    gateway.wait_beats(4)
    assert gateway.reports("failed") == [failed]
    assert gateway.heartbeats[-1]["update"] is None
    assert gateway.num_sent == num_sent
    errors = [error for beat in gateway.heartbeats for error in beat["errors"]]
    assert [error["code"] for error in errors] == ["update_failed"]
    assert device.num_prompt_tokens() == one.num_prompt_tokens


def test_a_higher_attempt_tries_again_and_fetches_what_is_missing(device, gateway, forge, tmp_path):
    whole = forge("cut", big_bytes=1 << 20)
    cut = truncated_to(whole, tmp_path)
    gateway.bundles[whole.bundle_id] = cut.path
    gateway.want(whole.bundle_id, 1)
    gateway.wait(lambda: gateway.reports("failed"), "the failure")
    gateway.bundles[whole.bundle_id] = whole.path
    gateway.num_sent = 0
    gateway.want(whole.bundle_id, 2)
    gateway.wait(lambda: gateway.reports("succeeded", whole.bundle_id), "the second try")
    assert device.num_prompt_tokens() == whole.num_prompt_tokens
    # The begin of the file is read anew, and then what was cut off.
    assert gateway.num_sent < 900_000


def test_a_device_answers_and_comes_back_while_its_gateway_is_away(device, gateway, one):
    gateway.stop()
    time.sleep(1)
    assert device.num_prompt_tokens() == one.num_prompt_tokens
    refused = device.chat(messages=LONG)
    assert place_of(refused) == (503, "device")
    assert "needs the cloud" in refused.json()["error"]["message"]
    gateway.start()
    gateway.wait_beats(2)
    assert device.cli("fleet", "--json").stdout.count('"last_contact_at": 1')


def test_what_is_too_long_is_streamed_from_the_cloud(device, gateway):
    answer = device.chat({"Authorization": "Bearer local"}, messages=LONG, stream=True)
    assert place_of(answer) == (200, "cloud")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert gateway.requests[0]["model"] == FALLBACK_MODEL
    assert gateway.headers[0]["authorization"].removeprefix("Bearer ") in gateway.keys.values()
    gateway.wait(lambda: gateway.heartbeats[-1]["counters"]["fallbacks_total"], "its count")


def test_a_queue_survives_a_power_cut_and_is_sent_in_order(device, gateway, one):
    gateway.stop()
    kept = []
    for number in range(3):
        messages = [*LONG, {"role": "user", "content": f"number {number}"}]
        answer = device.chat(QUEUE, messages=messages)
        assert place_of(answer) == (202, "device")
        kept.append(answer.json()["id"])
    device.kill()
    device.start()
    device.wait_answer()
    listed = device.client.get(f"{device.url}/v1/queued_requests").json()["data"]
    assert [(item["id"], item["status"]) for item in listed] == [(id_, "queued") for id_ in kept]
    gateway.start()

    def shown() -> list[dict]:
        pages = [device.client.get(f"{device.url}/v1/queued_requests/{id_}") for id_ in kept]
        return [page.json() for page in pages]

    device.wait(lambda: all(item["status"] == "completed" for item in shown()), "answers")
    assert [body["messages"][1]["content"] for body in gateway.requests] == [
        "number 0", "number 1", "number 2"
    ]  # fmt: skip
    response = shown()[0]["response"]
    assert (response["status_code"], response["request_id"]) == (200, "req-1")
    assert response["body"]["model"] == FALLBACK_MODEL
    assert device.client.delete(f"{device.url}/v1/queued_requests/{kept[0]}").json()["deleted"]


def test_what_was_being_sent_when_the_power_went_is_sent_again_and_what_was_answered_is_not(
    device, gateway
):
    gateway.stop()
    kept = []
    for number in range(2):
        messages = [*LONG, {"role": "user", "content": f"cut {number}"}]
        kept.append(device.chat(QUEUE, messages=messages).json()["id"])
    gateway.answer_delay_s = 0.5
    gateway.start()

    def statuses() -> list[str]:
        listed = device.client.get(f"{device.url}/v1/queued_requests").json()["data"]
        return [item["status"] for item in listed if item["id"] in kept]

    device.wait(lambda: statuses() == ["completed", "sending"], "the second to be on its way")
    gateway.wait(lambda: len(gateway.requests) == 2, "the second to be there")
    device.kill()
    gateway.answer_delay_s = 0.0
    device.start()
    device.wait(lambda: statuses() == ["completed", "completed"], "both answers")
    sent = [body["messages"][1]["content"] for body in gateway.requests]
    assert sent == ["cut 0", "cut 1", "cut 1"]


def test_one_agent_runs_at_a_time_and_keeps_the_device_in_its_fleet(device):
    for command in (("agent", "--port", "0"), ("leave",)):
        done = device.cli(*command)
        assert done.returncode == 1
        assert "already_running" in done.stderr


def test_web_pages_spend_nothing_and_read_nothing(device, gateway):
    num_asked = len(gateway.requests)
    always, foreign = {"x-maas-cloud": "always"}, {"host": "evil.example:8081"}
    assert device.chat({**always, "origin": "https://evil.example"}).status_code == 403
    assert device.chat({**always, **foreign}).status_code == 403
    assert device.chat({**always, "content-type": "text/plain"}).status_code == 415
    listed = device.client.get(f"{device.url}/v1/queued_requests", headers=foreign)
    assert listed.status_code == 403
    assert len(gateway.requests) == num_asked


def test_the_key_is_nowhere_but_in_its_file(device, gateway):
    (key,) = gateway.keys.values()
    shown = device.cli("fleet", "--json").stdout
    assert json.loads(shown)["fallback_model"] == FALLBACK_MODEL
    found = [
        p.name for p in device.home.rglob("*") if p.is_file() and key.encode() in p.read_bytes()
    ]
    assert found == ["fleet.json"]
    assert key not in shown + device.log.read_text()
