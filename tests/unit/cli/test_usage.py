"""``maas usage``, as a script and as a person use it."""

import csv
import io
import time
from decimal import Decimal

import pytest
from typer.testing import CliRunner

from maas.bootstrap import open_store, resolve_settings
from maas.cli.main import app
from maas.core.errors import ConfigError, NotFound
from maas.ledger.books import Books
from maas.ledger.entries import Entry, Exactness, Payer


@pytest.fixture
def used(maas):
    """Two requests of one project, the second one counted by what went out."""
    project = maas("project", "create", "shop")
    store = open_store(resolve_settings())
    entries = [
        Entry(
            id=name,
            at=time.time() - 1,
            payer=Payer(project["organization_id"], project["id"], "key-1"),
            request_id=name,
            endpoint="/v1/completions",
            model_id="tiny",
            tier="default",
            price_id="x",
            currency="USD",
            amount=Decimal(amount),
            exactness=exactness,
            num_requests=1,
            input_tokens=1000,
            cached_tokens=4,
            output_tokens=3,
        )
        for name, amount, exactness in (
            ("a", "0.1", Exactness.EXACT),
            ("b", "0.000000001", Exactness.ESTIMATED),
        )
    ]
    assert Books(store.database, store.clock).charge(entries) == 2
    store.database.close()
    return project


def test_usage_is_summed_to_the_last_digit(maas, used):
    (row,) = maas("usage", "--since", "1h")["usage"]
    assert (row["project_id"], row["model"]) == (used["id"], "tiny")
    assert (row["num_requests"], row["input_tokens"], row["output_tokens"]) == (2, 2000, 6)
    assert (row["amount"], row["currency"]) == ("0.100000001", "USD")
    assert maas("usage", "--project", "shop")["total"] == {"USD": "0.100000001"}
    assert maas("usage", "--project", "default") == {"usage": [], "total": {}}


def test_usage_as_csv_has_a_row_for_each_group(used):
    command = ["usage", "--group-by", "exactness", "--width", "1h", "--csv"]
    rows = list(csv.DictReader(io.StringIO(CliRunner().invoke(app, command).stdout)))
    assert {row["exactness"]: row["amount"] for row in rows} == {
        "exact": "0.100000000",
        "estimated": "0.000000001",
    }
    assert {int(row["start_time"]) % 3600 for row in rows} == {0}


def test_usage_as_a_table_has_the_total(used):
    text = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["usage"]).stdout
    assert "2,000" in text
    assert "total 0.100000001 USD" in text


def test_another_organisation_has_used_nothing(maas, used):
    maas("org", "create", "acme")
    assert maas("usage", "--org", "acme")["usage"] == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--group-by", "colour"), ConfigError),
        (("--since", "soon"), ConfigError),
        (("--since", "0d"), ConfigError),
        (("--project", "nowhere"), NotFound),
        (("--org", "nowhere"), NotFound),
    ],
)
def test_usage_of_nonsense_is_refused(maas, arguments, error):
    with pytest.raises(error, match=arguments[1]):
        maas("usage", *arguments)
