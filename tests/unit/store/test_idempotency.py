"""First answers in the store: whose they are, and how long they are kept."""

from dataclasses import replace

import pytest
from sqlalchemy import func, select

from maas.core.errors import IdempotencyKeyReused
from maas.store.idempotency import (
    KEPT_S,
    IdempotentRequest,
    StoredAnswer,
    claim,
    find_answer,
    keep_answer,
)
from maas.store.state import ensure_project
from maas.store.tenancy_tables import IdempotencyRow

NOW = 1_000_000.0
ANSWER = StoredAnswer(200, {"content-type": "application/json"}, b"sealed")
OTHER = replace(ANSWER, body=b"another")


@pytest.fixture
def request_(database, clock):
    project_id = ensure_project(database, clock)
    return IdempotentRequest(project_id, "once", "key-1", "POST", "/v1/completions", "hash")


@pytest.fixture
def session(database, request_):
    with database.write() as session:
        yield session


@pytest.fixture(params=["api_key_id", "method", "path", "body_hash"])
def another(request, request_):
    return replace(request_, **{request.param: "other"})


def test_a_request_that_was_claimed_has_no_answer_and_its_first_moment(session, request_):
    assert find_answer(session, request_, NOW) is None
    assert [claim(session, request_, NOW + seconds) for seconds in (0, 5)] == [NOW, NOW]
    assert find_answer(session, request_, NOW) is None


@pytest.mark.parametrize("is_answered", [False, True])
def test_a_key_that_is_claimed_or_answered_is_not_anothers(session, request_, another, is_answered):
    claim(session, request_, NOW)
    if is_answered:
        keep_answer(session, request_, ANSWER, NOW)
    for ask in (find_answer, claim):
        with pytest.raises(IdempotencyKeyReused, match="'once' was used for another request"):
            ask(session, another, NOW)
    # Its answer goes to who asked for it and is not kept.
    assert keep_answer(session, another, OTHER, NOW) == OTHER
    assert find_answer(session, request_, NOW) == (ANSWER if is_answered else None)


def test_the_first_answer_stays(session, request_):
    claim(session, request_, NOW)
    assert keep_answer(session, request_, ANSWER, NOW) == ANSWER
    assert keep_answer(session, request_, OTHER, NOW) == ANSWER
    assert find_answer(session, request_, NOW) == ANSWER


def test_after_a_day_a_key_is_free(session, request_, another):
    claim(session, request_, NOW)
    keep_answer(session, request_, ANSWER, NOW)
    later = NOW + KEPT_S
    assert find_answer(session, another, later) is None
    assert claim(session, another, later) == later
    # One that was computed since yesterday does not take the key back.
    assert keep_answer(session, request_, ANSWER, later) == ANSWER
    assert find_answer(session, another, later) is None


def test_what_is_over_goes_a_hundred_at_a_time(session, request_):
    for number in range(150):
        claim(session, replace(request_, key=f"old-{number}"), NOW)
    claim(session, replace(request_, key="young"), NOW + 1)
    counts: list[int | None] = []
    for number in range(3):
        claim(session, replace(request_, key=f"new-{number}"), NOW + KEPT_S)
        counts.append(session.scalar(select(func.count()).select_from(IdempotencyRow)))
    assert counts == [52, 3, 4]
    assert claim(session, replace(request_, key="young"), NOW + KEPT_S) == NOW + 1
