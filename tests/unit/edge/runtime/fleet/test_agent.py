"""A real agent against a fake gateway."""

import threading


def test_an_update_is_taken_under_running_requests(device, gateway, one, two):
    gateway.want(one.bundle_id)
    device.start()
    refused = device.chat()
    assert (refused.status_code, refused.headers.get("x-maas-served-by")) in {
        (200, "cloud"),
        (503, "device"),
        (200, "device"),
    }
    gateway.wait(lambda: gateway.reports("succeeded", one.bundle_id), "the first bundle")
    assert device.num_prompt_tokens() == one.num_prompt_tokens
    seen: list[tuple[int, str, int]] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            answer = device.chat(max_tokens=60)
            tokens = answer.json().get("usage", {}).get("prompt_tokens", 0)
            seen.append((answer.status_code, answer.headers["x-maas-served-by"], tokens))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    gateway.want(two.bundle_id, 1, "rollout-1")
    gateway.wait(lambda: gateway.reports("succeeded", two.bundle_id), "the second bundle")
    device.wait(lambda: seen[-1][2] == two.num_prompt_tokens, "answers of the new one")
    is_over.set()
    for thread in threads:
        thread.join()
    assert {answer[:2] for answer in seen} == {(200, "device")}
    assert {answer[2] for answer in seen} == {one.num_prompt_tokens, two.num_prompt_tokens}
    gateway.wait_beats()
    last = gateway.heartbeats[-1]
    assert (last["bundle_id"], last["previous_bundle_id"]) == (two.bundle_id, one.bundle_id)
    assert (last["state"], last["update"]) == ("ok", None)
    assert last["speed"]["load_s"] > 0
    assert last["speed"]["decode_tok_s"] > 0
    assert device.stop() == 0
