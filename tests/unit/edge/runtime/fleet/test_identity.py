"""Enrolment: one device and one key, whatever is lost or cut off on the way."""

import json
import stat

import pytest
from typer.testing import CliRunner

from maas.core.errors import AuthenticationFailed, ConfigError, Conflict, SourceUnreachable
from maas.edge.runtime.bundle.signing import key_id_of
from maas.edge.runtime.cli.main import app
from maas.edge.runtime.fleet import gateway as asking
from maas.edge.runtime.fleet.gateway import enrol_device
from maas.edge.runtime.fleet.identity import (
    begin_enrolment,
    forget_identity,
    gateway_url,
    identity_path,
    read_identity,
)
from maas.edge.runtime.shelf.shelf import Shelf


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(asking, "_RETRY_S", 0.01)


async def enrol(home, url, code="code"):
    return await enrol_device(home, url, code, name="d", facts={})


async def test_a_code_gives_a_device_and_a_key_that_only_the_owner_reads(gateway, tmp_path):
    home = tmp_path / "new" / "home"
    identity = await enrol(home, gateway.url)
    assert identity.device_id.startswith("device-")
    assert [identity.key] == list(gateway.keys.values())
    assert read_identity(home) == identity
    assert stat.S_IMODE(identity_path(home).stat().st_mode) == 0o600


async def test_a_lost_answer_is_asked_for_again_and_is_the_same(gateway, tmp_path):
    gateway.lost_answers = 2
    identity = await enrol(tmp_path, gateway.url)
    assert gateway.lost_answers == 0
    assert [identity.key] == list(gateway.keys.values())


async def test_a_process_that_died_before_the_answer_goes_on_with_its_nonce(gateway, tmp_path):
    gateway.lost_answers = 9
    with pytest.raises(SourceUnreachable):
        await enrol(tmp_path, gateway.url)
    nonce = gateway.codes["code"]
    begun = read_identity(tmp_path)
    assert (begun.nonce, begun.key) == (nonce, None)
    gateway.lost_answers = 0
    identity = await enrol(tmp_path, gateway.url, "co-de")
    assert (identity.nonce, len(gateway.keys)) == (nonce, 1)


async def test_another_code_is_asked_with_another_nonce(gateway, tmp_path):
    gateway.codes["second"] = None
    with pytest.raises(AuthenticationFailed, match="invalid_enrolment_code"):
        await enrol(tmp_path, gateway.url, "wrong")
    first = read_identity(tmp_path).nonce
    identity = await enrol(tmp_path, gateway.url, "second")
    assert identity.nonce != first


async def test_an_enrolled_device_is_not_enrolled_again(gateway, tmp_path):
    await enrol(tmp_path, gateway.url)
    with pytest.raises(Conflict, match="maas-edge leave"):
        begin_enrolment(tmp_path, "http://other", "other")
    forget_identity(tmp_path)
    assert read_identity(tmp_path) is None
    begin_enrolment(tmp_path, "http://other", "other")


def test_the_code_itself_is_never_on_the_disk(tmp_path):
    begin_enrolment(tmp_path, "http://gateway", "very-secret-code")
    assert b"very-secret-code" not in identity_path(tmp_path).read_bytes()


def test_a_damaged_file_says_what_to_do(tmp_path):
    identity_path(tmp_path).write_text("{")
    with pytest.raises(ConfigError, match="maas-edge leave"):
        read_identity(tmp_path)


async def test_the_key_of_the_gateway_s_bundles_is_trusted_from_then_on(gateway, tmp_path):
    gateway.bundle_public_key = "ab" * 32
    gateway.lost_answers = 2
    identity = await enrol(tmp_path, gateway.url)
    assert identity.bundle_public_key == "ab" * 32
    assert read_identity(tmp_path) == identity
    assert Shelf(tmp_path).trusted() == {"ab" * 32}


async def test_keys_that_were_trusted_before_still_are(gateway, tmp_path):
    Shelf(tmp_path).trust("cd" * 32)
    gateway.bundle_public_key = "ab" * 32
    await enrol(tmp_path, gateway.url)
    assert Shelf(tmp_path).trusted() == {"ab" * 32, "cd" * 32}


@pytest.mark.parametrize("told", [None, "", "AB" * 32, "ab" * 32 + "\n", "ab" * 31, "zz" * 32])
async def test_a_gateway_that_tells_no_key_is_one_of_before_and_one_that_is_none_no_gateway(
    gateway, tmp_path, told
):
    gateway.bundle_public_key = told
    if told is None:
        assert (await enrol(tmp_path, gateway.url)).bundle_public_key is None
    else:
        with pytest.raises(SourceUnreachable, match="not a gateway's answer"):
            await enrol(tmp_path, gateway.url)
        assert read_identity(tmp_path).key is None
    assert Shelf(tmp_path).trusted() == set()


def test_a_device_of_before_is_still_known(tmp_path):
    begin_enrolment(tmp_path, "http://gateway", "code")
    fields = json.loads(identity_path(tmp_path).read_bytes())
    del fields["bundle_public_key"]
    identity_path(tmp_path).write_text(json.dumps({**fields, "key": "mk"}))
    known = read_identity(tmp_path)
    assert (known.key, known.bundle_public_key) == ("mk", None)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://a.example/", "https://a.example"),
        ("http://127.0.0.1:80/v1", "http://127.0.0.1:80"),
        ("https://a.example/prefix/v1/", "https://a.example/prefix"),
    ],
)
def test_urls_are_kept_without_the_version(given, kept):
    assert gateway_url(given) == kept


@pytest.mark.parametrize(
    "given", ["", "a.example", "ftp://a", "https://", "https://u:p@a", "https://a b"]
)
def test_what_is_no_url_is_refused(given):
    with pytest.raises(ConfigError, match="want"):
        gateway_url(given)


def test_the_command_shows_all_but_the_key(gateway, tmp_path):
    runner = CliRunner()

    def command(*arguments: str):
        return runner.invoke(app, arguments, env={"MAAS_EDGE_HOME": str(tmp_path)})

    gateway.bundle_public_key = "ab" * 32
    enrolled = command("enrol", gateway.url, "--code", "code", "--name", "d")
    assert enrolled.exit_code == 0, enrolled.exception
    assert f"signed by key {key_id_of('ab' * 32)}" in enrolled.output
    (key,) = gateway.keys.values()
    shown = command("fleet", "--json").output
    facts = json.loads(shown)
    assert facts["bundle_public_key"] == "ab" * 32
    assert (facts["name"], facts["is_enrolled"], facts["last_contact_at"]) == ("d", True, None)
    human = command("fleet").output
    assert "never" in human
    assert key not in enrolled.output + shown + human
    assert "maas-edge leave" in str(command("enrol", gateway.url, "--code", "code").exception)
    assert command("leave").exit_code == 0
    assert "in no fleet" in str(command("fleet").exception)
    assert "in no fleet" in str(command("agent").exception)
