"""Every error of the tree has a status, and none shows what it should not."""

import pickle

import pytest

from maas.core import errors
from maas.core.errors import MaasError
from maas.gateway.errors import STATUSES, error_body, error_headers, status_of


def _all(kind: type[MaasError]) -> list[type[MaasError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _all(child))]


EVERY = [kind for kind in _all(MaasError) if kind.__module__ == "maas.core.errors"]


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_has_a_status_a_type_and_a_code(kind):
    status, wire_type = status_of(kind("m"))
    assert 400 <= status < 600
    assert wire_type
    assert kind.code


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_survives_pickling(kind):
    again = pickle.loads(pickle.dumps(kind("m", param="p")))
    assert (type(again), again.message, again.context) == (kind, "m", {"param": "p"})


def test_codes_are_unique_and_the_table_names_known_errors():
    assert len({kind.code for kind in EVERY}) == len(EVERY)
    assert set(STATUSES) <= set(EVERY)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.MalformedBody, 400),
        (errors.PayloadTooLarge, 413),
        (errors.RequestTimedOut, 408),
        (errors.AuthenticationFailed, 401),
        (errors.ModelNotFound, 404),
        (errors.NoReplica, 503),
        (errors.EngineOverloaded, 503),
        (errors.EngineUnreachable, 502),
        (errors.WeightsCorrupt, 500),
    ],
)
def test_statuses_callers_rely_on(kind, status):
    assert status_of(kind("m"))[0] == status


@pytest.mark.parametrize(
    "kind", [errors.WeightsCorrupt, errors.DiskFull, errors.ConfigError, errors.EngineStartFailed]
)
def test_messages_for_operators_are_not_shown_to_callers(kind):
    assert b"/srv/models" not in error_body(kind("/srv/models/x is broken"))


def test_what_can_be_tried_again_says_when():
    headers = dict(error_headers(errors.NoReplica("m", retry_after_s=0.4), "req-1"))
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"1", b"400")
