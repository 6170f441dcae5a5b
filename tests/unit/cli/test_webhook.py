"""``maas webhook``, as a script uses it."""

import pytest
from typer.testing import CliRunner

from maas.cli.main import app
from maas.core.errors import InvalidRequest, NotFound

HOOK = "https://hooks.example.org/budget"


def test_secret_of_a_webhook_is_shown_once(maas):
    made = maas("webhook", "create", "alerts", HOOK)
    assert made["secret"].startswith("whsec_")
    (listed,) = maas("webhook", "list")["webhooks"]
    assert listed == {name: value for name, value in made.items() if name != "secret"}


def test_webhook_belongs_to_one_organisation(maas):
    maas("org", "create", "acme")
    made = maas("webhook", "create", "alerts", HOOK, "--org", "acme")
    assert maas("webhook", "list")["webhooks"] == []
    with pytest.raises(NotFound, match=made["id"]):
        maas("webhook", "delete", made["id"])
    assert maas("webhook", "delete", made["id"], "--org", "acme")["deleted"]
    assert maas("webhook", "list", "--org", "acme")["webhooks"] == []


def test_webhook_is_in_the_audit_log_without_its_secret(maas, tmp_path):
    made = maas("webhook", "create", "alerts", HOOK)
    file = tmp_path / "log.jsonl"
    maas("audit", "export", "--out", str(file))
    assert made["id"] in file.read_text()
    assert made["secret"] not in file.read_text()


@pytest.mark.parametrize(
    "url", ["", "ftp://a.example", "http://", "http://[bad", "http://a.example:99999/", "a.example"]
)
def test_address_that_is_none_is_refused(maas, url):
    with pytest.raises(InvalidRequest, match="not an http address"):
        maas("webhook", "create", "alerts", url)
    assert maas("webhook", "list")["webhooks"] == []


def test_table_for_people_has_no_secret(maas):
    runner = CliRunner(env={"COLUMNS": "200"})
    made = runner.invoke(app, ["webhook", "create", "alerts", HOOK]).stdout
    secret = made.split()[1]
    assert secret.startswith("whsec_")
    assert "not shown again" in made
    listed = runner.invoke(app, ["webhook", "list"]).stdout
    assert HOOK in listed
    assert secret not in listed
