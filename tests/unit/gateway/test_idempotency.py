"""What is held of an answer."""

import pytest

from maas.gateway.idempotency import HeldAnswer


@pytest.mark.parametrize("is_complete", [False, True])
async def test_what_comes_after_the_end_of_an_answer_is_no_part_of_it(is_complete):
    answer = HeldAnswer()
    await answer.take({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    first = {"type": "http.response.body", "body": b"{}", "more_body": not is_complete}
    await answer.take(first)
    await answer.take({"type": "http.response.start", "status": 500, "headers": []})
    await answer.take({"type": "http.response.body", "body": b"failed"})
    assert (answer.status, answer.headers, answer.body) == (200, [(b"a", b"b")], b"{}")
