"""``maas org``, ``project``, ``key``, ``limit`` and ``audit``, as a script uses them."""

import json

import pytest
from typer.testing import CliRunner

from maas.bootstrap import open_store, resolve_settings
from maas.cli import tenants
from maas.cli.durations import parse_duration
from maas.cli.main import app
from maas.core.errors import ConfigError, MaasError


def test_key_create_keeps_its_contract(maas):
    made = maas("key", "create", "--name", "N")
    assert made["key"].startswith(f"sk-maas-{made['id']}-")
    assert made["scopes"] == ["inference"]
    assert not {"salt", "digest"} & set(made)


def test_key_is_made_on_the_terms_that_were_given(maas):
    maas("org", "create", "acme")
    project = maas("project", "create", "shop", "--org", "acme", "--weight", "3")
    made = maas(
        *("key", "create", "--name", "k", "--project", "shop", "--org", "acme"),
        *("--models", "a, b", "--endpoints", "/v1/chat/completions", "--networks", "10.1.2.3/8"),
        *("--expires-in", "2h"),
    )
    assert made["project_id"] == project["id"]
    assert made["models"] == ["a", "b"]
    assert made["endpoints"] == ["/v1/chat/completions"]
    assert made["networks"] == ["10.0.0.0/8"]
    assert made["expires_at"] - made["created_at"] == pytest.approx(7200, abs=5)


def test_names_of_tenants_are_no_markup(maas):
    maas("project", "create", "[/x] [red]sale")
    shown = CliRunner().invoke(app, ["project", "list"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "[/x] [red]sale" in shown.stdout


def test_rotation_names_the_successor_and_ends_the_old_key(maas):
    old = maas("key", "create", "--name", "k", "--models", "a")
    new = maas("key", "rotate", old["id"], "--overlap", "10m")
    assert new["models"] == ["a"]
    listed = {key["id"]: key for key in maas("key", "list")["keys"]}
    assert listed[old["id"]]["replaced_by"] == new["id"]
    assert listed[old["id"]]["expires_at"] - new["created_at"] == pytest.approx(600, abs=5)
    with pytest.raises(MaasError, match="replaced"):
        maas("key", "rotate", old["id"])


def test_rotated_admin_key_is_put_into_its_file(maas, tmp_path):
    made = maas("key", "create", "--name", "admin", "--admin")
    file = tmp_path / "home" / "admin.key"
    file.write_text(made["key"] + "\n")
    other = maas("key", "create", "--name", "other")
    maas("key", "rotate", other["id"])
    assert file.read_text().strip() == made["key"]
    new = maas("key", "rotate", made["id"])
    assert file.read_text().strip() == new["key"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_key_of_a_user_has_no_scopes_of_its_own(maas):
    user = maas("org", "add-user", "a@example.org", "--role", "owner", "--project", "default")
    made = maas("key", "create", "--name", "k", "--user", "a@example.org")
    assert (made["user_id"], made["scopes"]) == (user["id"], [])
    with pytest.raises(ConfigError, match="--admin"):
        maas("key", "create", "--name", "k", "--user", "a@example.org", "--admin")
    maas("org", "remove-user", "a@example.org")
    assert maas("org", "users")["users"] == []
    assert maas("key", "list")["keys"][0]["revoked_at"] is not None


def test_person_gets_another_role_in_organisation_and_project(maas):
    user = maas("org", "add-user", "a@example.org", "--role", "viewer")
    assert maas("org", "set-role", "a@example.org", "owner")["role"] == "owner"
    assert maas("org", "users")["users"][0]["role"] == "owner"
    for role in ("developer", "billing"):
        member = maas("project", "set-user", "default", "a@example.org", "--role", role)
        assert (member["user_id"], member["role"]) == (user["id"], role)
    key = maas("key", "create", "--name", "k", "--user", "a@example.org")
    assert maas("project", "remove-user", "default", "a@example.org")["deleted"]
    assert key["id"] in {item["id"] for item in maas("key", "list")["keys"] if item["revoked_at"]}
    maas("org", "create", "acme")
    with pytest.raises(MaasError, match="has no user"):
        maas("org", "set-role", "a@example.org", "viewer", "--org", "acme")


def test_service_account_comes_with_a_key_and_takes_it_along(maas):
    made = maas("project", "add-account", "default", "robot", "--role", "viewer")
    assert made["key"].startswith(f"sk-maas-{made['key_id']}-")
    (listed,) = maas("project", "accounts", "default")["service_accounts"]
    assert (listed["id"], listed["role"]) == (made["id"], "viewer")
    second = maas("key", "create", "--name", "second", "--service-account", made["id"])
    assert (second["service_account_id"], second["scopes"]) == (made["id"], [])
    maas("project", "create", "shop")
    with pytest.raises(MaasError, match=made["id"]):
        maas("project", "remove-account", "shop", made["id"])
    assert maas("project", "remove-account", "default", made["id"])["deleted"]
    assert maas("project", "accounts", "default")["service_accounts"] == []
    assert all(key["revoked_at"] for key in maas("key", "list")["keys"])


def test_gateway_that_has_not_seen_a_revocation_is_spoken_of(maas, monkeypatch):
    monkeypatch.setattr(tenants, "_GATEWAYS_TIMEOUT_S", 0.1)
    key = maas("key", "create", "--name", "k")
    store = open_store(resolve_settings())
    runner = CliRunner()
    assert "gateway" not in runner.invoke(app, ["key", "revoke", key["id"]]).stderr
    assert store.leases.acquire("gateway/gw-1", "gw-1", ttl_s=60, revision=0)
    assert "has not seen" in runner.invoke(app, ["key", "revoke", key["id"]]).stderr


def test_keys_are_listed_by_project(maas):
    maas("project", "create", "shop")
    maas("key", "create", "--name", "one")
    maas("key", "create", "--name", "two", "--project", "shop")
    assert [key["name"] for key in maas("key", "list", "--project", "shop")["keys"]] == ["two"]
    assert len(maas("key", "list")["keys"]) == 2


def test_project_is_modified_and_archived(maas):
    made = maas("project", "create", "shop", "--priority", "batch")
    assert made["priority"] == "batch"
    assert maas("project", "modify", "shop", "--weight", "7")["weight"] == 7
    assert maas("project", "archive", made["id"])["archived_at"] is not None
    with pytest.raises(MaasError, match="first"):
        maas("project", "archive", "default")
    with pytest.raises(MaasError, match="maas project list"):
        maas("project", "archive", "nowhere")


def test_organisation_of_the_platform_stays(maas):
    maas("org", "create", "acme")
    assert maas("org", "archive", "acme")["archived_at"] is not None
    with pytest.raises(MaasError, match="default"):
        maas("org", "archive", "default")


def test_limits_are_set_number_by_number(maas):
    maas("limit", "set", "project", "default", "--requests-per-minute", "5")
    made = maas("limit", "set", "project", "default", "--monthly-budget", "12.50")
    assert (made["requests_per_minute"], made["monthly_budget"]) == (5, "12.50")
    maas("limit", "set", "model", "tiny", "--concurrent-requests", "0")
    assert len(maas("limit", "list")["limits"]) == 2
    maas("limit", "set", "model", "tiny", "--concurrent-requests", "none")
    assert [item["scope"] for item in maas("limit", "list")["limits"]] == ["project"]
    for arguments in ((), ("--tokens-per-day", "-1"), ("--monthly-budget", "much")):
        with pytest.raises(MaasError):
            maas("limit", "set", "project", "default", *arguments)


def test_audit_log_is_exported_and_verified(maas, tmp_path):
    maas("project", "create", "shop")
    file = tmp_path / "log.jsonl"
    assert maas("audit", "export", "--out", str(file))["num_entries"] == 3
    verdict = maas("audit", "verify", "--file", str(file))
    assert verdict["is_whole"]
    assert maas("audit", "verify", "--expect", verdict["head_hash"])["is_whole"]
    assert not maas("audit", "verify", "--expect", "0" * 64, code=1)["is_whole"]
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], *lines[2:]]))
    assert not maas("audit", "verify", "--file", str(file), code=1)["is_whole"]
    assert json.loads(lines[2])["actor_kind"] == "system"


def test_table_for_people_names_what_there_is(maas):
    maas("project", "create", "shop")
    maas("limit", "set", "project", "shop", "--tokens-per-minute", "900")
    runner = CliRunner(env={"COLUMNS": "200"})
    for arguments, word in (
        (("org", "list"), "default"),
        (("project", "list"), "shop"),
        (("limit", "list"), "900"),
        (("audit", "verify"), "whole"),
    ):
        assert word in runner.invoke(app, list(arguments)).stdout


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), ("30d", 2_592_000)]
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text, "--overlap") == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "5y", "1h30m"])
def test_what_is_no_duration_is_refused_by_option(text):
    with pytest.raises(ConfigError, match="--overlap"):
        parse_duration(text, "--overlap")
