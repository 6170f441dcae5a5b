"""Each capability flag: without it the gateway refuses by its name, and asks no engine."""

import pytest

from maas.engines.contract import EngineCapabilities
from tests.api.conftest import RunningGateway
from tests.fakes.engine import fake_engine
from tests.fakes.questions import FLAGS, NOT_ASKED, NOT_OFFERED, QUESTIONS

ALL = dict.fromkeys(FLAGS, True)


def test_every_flag_has_a_question_or_is_none_of_a_requests() -> None:
    assert set(QUESTIONS) | NOT_ASKED == set(FLAGS)
    assert not set(QUESTIONS) & NOT_ASKED
    assert isinstance(EngineCapabilities(**ALL), EngineCapabilities)


@pytest.mark.parametrize("flag", QUESTIONS)
def test_what_an_engine_lacks_is_refused_by_the_flags_name(
    gateway: RunningGateway, flag: str
) -> None:
    path, body = QUESTIONS[flag]
    with fake_engine() as engine:
        gateway.deploy(engine, model=f"no-{flag}", capabilities=ALL | {flag: False})
        answer = gateway.client.post(path, json={"model": f"no-{flag}", **body})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "capability_missing"), error
        assert error["param"] == flag
        assert f"does not offer {flag}" in error["message"]
        assert engine.requests == []


def test_what_is_not_offered_at_all_is_refused_by_name(gateway: RunningGateway) -> None:
    with fake_engine() as engine:
        gateway.deploy(engine, model="everything", capabilities=ALL)
        for name, path, body in NOT_OFFERED:
            answer = gateway.client.post(path, json={"model": "everything", **body})
            error = answer.json()["error"]
            assert answer.status_code == 400, (name, answer.text)
            assert name in error["message"], error
        assert engine.requests == []
