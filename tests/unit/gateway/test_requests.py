"""What a request may ask for at the gateway: refusals name the field."""

import json

import pytest

from maas.core.errors import InvalidRequest
from maas.gateway.facts import ModelFacts
from maas.gateway.relay.requests import parse_completion


def parsed(**body):
    raw = json.dumps({"model": "m", **body}).encode()
    return parse_completion(raw, lambda _: ModelFacts(id="m", owned_by="us"), 32)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [[1]] * 129}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a", "b"], "n": 65}, "n"),
    ],
)
def test_more_answers_than_one_request_may_have_are_refused(body, param):
    with pytest.raises(InvalidRequest) as caught:
        parsed(**body)
    assert caught.value.context["param"] == param


@pytest.mark.parametrize(
    ("body", "num_prompts"),
    [
        ({"prompt": [[1]] * 128}, 128),
        ({"prompt": ["a"] * 2, "n": 64}, 2),
        ({"prompt": [1] * 1000}, 1),
        ({"prompt": "a" * 1000, "n": 128}, 1),
    ],
)
def test_as_many_as_it_may_have_are_taken(body, num_prompts):
    assert parsed(**body).num_prompts == num_prompts
