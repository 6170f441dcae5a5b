"""The offline queue: nothing is lost, nothing is sent twice that was answered."""

import msgspec
import pytest

from maas.core.errors import LimitExceeded, NotFound
from maas.edge.runtime.server.offline import OfflineQueue, QueueLimits

PATH = "/v1/chat/completions"


def names(queue: OfflineQueue) -> list[str]:
    return [queue.get(request_id)[0].body.decode() for request_id in queue.ids()]


def drain(queue: OfflineQueue) -> list[str]:
    """Answer all that waits; return the bodies in the order they were taken."""
    taken = []
    while (request := queue.take()) is not None:
        taken.append(request.body.decode())
        queue.answer(request.id, 200, b"{}")
    return taken


def test_requests_are_taken_in_the_order_they_came_also_by_a_new_process(tmp_path):
    queue = OfflineQueue(tmp_path / "queue")
    for number in range(12):
        queue.put(PATH, str(number).encode(), "why")
    queue = OfflineQueue(tmp_path / "queue")
    queue.put(PATH, b"last", "why")
    assert drain(queue) == [*map(str, range(12)), "last"]
    assert queue.num_waiting == 0


def test_what_was_being_sent_when_the_power_went_is_sent_again(tmp_path):
    queue = OfflineQueue(tmp_path / "queue")
    first, second = (queue.put(PATH, body, "why") for body in (b"1", b"2"))
    assert queue.take() == first
    assert queue.get(first.id)[1] == "sending"
    queue = OfflineQueue(tmp_path / "queue")
    assert [queue.get(item.id)[1] for item in (first, second)] == ["queued", "queued"]
    assert queue.take() == first
    queue.put_back(first.id)
    assert queue.take() == first


def test_what_was_answered_is_never_sent_again(tmp_path):
    queue = OfflineQueue(tmp_path / "queue")
    sent = queue.put(PATH, b"1", "why")
    queue.answer(sent.id, 200, b'{"a":1}', "req-1")
    queue = OfflineQueue(tmp_path / "queue")
    assert queue.take() is None
    _, status, answer = queue.get(sent.id)
    assert (status, answer.body, answer.request_id) == ("completed", b'{"a":1}', "req-1")
    refused = queue.put(PATH, b"2", "why")
    queue.answer(refused.id, 403, b"{}")
    assert queue.get(refused.id)[1] == "failed"


def test_what_a_power_cut_left_half_written_is_swept(tmp_path):
    folder = tmp_path / "queue"
    kept = OfflineQueue(folder).put(PATH, b"1", "why")
    (folder / ".queued-0000000002abcdabcd.request.1234.new").write_bytes(b"half")
    (folder / "queued-0000000003abcdabcd.answer").write_bytes(b"of a deleted request")
    queue = OfflineQueue(folder)
    assert queue.ids() == [kept.id]
    assert [path.name for path in folder.iterdir()] == [f"{kept.id}.request"]


def test_a_request_that_cannot_be_read_any_more_holds_nobody_up(tmp_path):
    queue = OfflineQueue(tmp_path / "queue")
    bad, good = queue.put(PATH, b"1", "why"), queue.put(PATH, b"2", "why")
    (tmp_path / "queue" / f"{bad.id}.request").write_bytes(b"{")
    assert queue.take() == good
    assert queue.ids() == [good.id]


def test_an_answer_that_cannot_be_read_any_more_is_asked_for_again(tmp_path):
    queue = OfflineQueue(tmp_path / "queue")
    sent = queue.put(PATH, b"1", "why")
    queue.answer(sent.id, 200, b"{}")
    (tmp_path / "queue" / f"{sent.id}.answer").write_bytes(b"")
    assert OfflineQueue(tmp_path / "queue").take() == sent


def test_a_deleted_request_is_not_sent_and_its_answer_not_kept(tmp_path):
    queue = OfflineQueue(tmp_path / "queue")
    waits, sent = queue.put(PATH, b"1", "why"), queue.put(PATH, b"2", "why")
    queue.delete(waits.id)
    assert queue.take() == sent
    queue.delete(sent.id)
    queue.answer(sent.id, 200, b"{}")
    assert OfflineQueue(tmp_path / "queue").ids() == []
    answered = queue.put(PATH, b"3", "why")
    queue.answer(answered.id, 200, b"{}")
    queue.delete(answered.id)
    assert list((tmp_path / "queue").iterdir()) == []
    with pytest.raises(NotFound):
        queue.get(sent.id)
    with pytest.raises(NotFound):
        queue.delete("../../fleet")


def test_a_full_queue_refuses_and_loses_nothing(tmp_path):
    queue = OfflineQueue(tmp_path / "queue", QueueLimits(max_requests=3))
    for number in range(3):
        queue.put(PATH, str(number).encode(), "why")
    with pytest.raises(LimitExceeded, match="3 requests wait"):
        queue.put(PATH, b"more", "why")
    assert names(queue) == ["0", "1", "2"]
    small = OfflineQueue(tmp_path / "small", QueueLimits(max_bytes=1000))
    with pytest.raises(LimitExceeded):
        small.put(PATH, bytes(1001), "why")


def test_answers_make_room_the_oldest_first_and_go_when_their_time_is_over(tmp_path):
    now = [1000.0]
    limits = QueueLimits(max_requests=3, keep_answers_s=100)
    queue = OfflineQueue(tmp_path / "queue", limits, lambda: now[0])
    first, second, third = (queue.put(PATH, body, "why") for body in (b"1", b"2", b"3"))
    for item in (first, second):
        queue.answer(item.id, 200, b"{}")
    queue.put(PATH, b"4", "why")
    assert names(queue) == ["2", "3", "4"]
    queue.answer(third.id, 200, b"{}")
    now[0] = 1101.0
    queue.put(PATH, b"5", "why")
    assert names(queue) == ["4", "5"]


def test_answers_count_and_make_room_for_younger_ones_never_for_what_waits(tmp_path):
    now = [1000.0]
    limits = QueueLimits(max_bytes=10_000)
    queue = OfflineQueue(tmp_path / "queue", limits, lambda: now[0])
    sent = [queue.put(PATH, str(number).encode(), "why") for number in range(4)]
    # The second is answered first.
    for number in (1, 0, 2):
        now[0] += 1
        queue.answer(sent[number].id, 200, bytes(3000))
    assert names(queue) == ["0", "2", "3"]
    assert sum(path.stat().st_size for path in (tmp_path / "queue").iterdir()) <= 10_000
    # One that is too long for all of them stays until the next.
    queue.answer(sent[3].id, 200, bytes(9000))
    assert names(queue) == ["3"]
    waits = queue.put(PATH, b"4", "why")
    assert names(queue) == ["4"]
    queue.answer(waits.id, 200, bytes(3000))
    with pytest.raises(LimitExceeded):
        queue.put(PATH, bytes(9000), "why")
    # What is refused drives no answer out; sizes are those of the files.
    assert names(queue) == ["4"]


def test_files_that_are_not_the_queue_s_are_left_alone(tmp_path):
    folder = tmp_path / "queue"
    folder.mkdir()
    odd = [
        "queued-x.request",
        "queued-0000000001.request",
        "notes.txt",
        ".hidden",
        "queued-.answer",
    ]
    for name in odd:
        (folder / name).write_bytes(b"{}")
    (folder / "queued-0000000009abcdabcd.request").mkdir()
    queue = OfflineQueue(folder)
    kept = queue.put(PATH, b"1", "why")
    assert (queue.ids(), queue.take()) == ([kept.id], kept)
    queue.delete(kept.id)
    assert {path.name for path in folder.iterdir()} > set(odd)


def test_what_lets_others_pass_is_not_taken(tmp_path):
    queue = OfflineQueue(tmp_path / "queue")
    first, second = queue.put(PATH, b"1", "why"), queue.put(PATH, b"2", "why")
    assert queue.take({first.id}) == second
    assert queue.take({first.id}) is None
    assert queue.take() == first


def test_files_are_for_the_owner_only(tmp_path):
    queue = OfflineQueue(tmp_path / "queue")
    sent = queue.put(PATH, b"secret", "why")
    queue.answer(sent.id, 200, b"{}")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "queue").iterdir()} == {0o600}
    assert msgspec.json.decode((tmp_path / "queue" / f"{sent.id}.request").read_bytes())
