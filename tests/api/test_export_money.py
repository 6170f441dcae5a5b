"""What exports cost: estimated, held, charged once, and told."""

import asyncio
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select

from maas.edge.export.charges import ExportLedger
from maas.ledger.books import Books
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.exports import ExportRepository
from maas.store.ledger_tables import CounterRow, GrantRow, JournalRow, SpenderRow
from maas.store.limits import LimitKey, LimitRepository
from maas.store.records import LimitScope
from tests.api.conftest import RunningGateway
from tests.api.yard import BASE, Yard, open_yard

PRICE = Decimal("0.01")


@pytest.fixture
def yard(gateway: RunningGateway, smollm2_dir: Path) -> Iterator[Yard]:
    tariff = Tariff(gateway.store.database, gateway.store.clock)
    rates = Rates(export_second=PRICE)
    tariff.override(BASE, rates, tier="default", currency="USD")
    with open_yard(gateway, smollm2_dir) as opened:
        yield opened
    tariff.reset(BASE, tier="default")


def budget(yard: Yard, amount: str) -> None:
    key = LimitKey(LimitScope.PROJECT, yard.project_id)
    LimitRepository(yard.gateway.store.database).set(key, monthly_budget=Decimal(amount))


def charges(yard: Yard) -> list[JournalRow]:
    wanted = select(JournalRow).where(JournalRow.project_id == yard.project_id)
    with yard.gateway.store.database.read() as session:
        return list(session.scalars(wanted))


def held(yard: Yard, export_id: str) -> int:
    wanted = select(GrantRow).where(GrantRow.spender_id == f"export:{export_id}")
    with yard.gateway.store.database.read() as session:
        return sum(row.amount for row in session.scalars(wanted))


def is_open(yard: Yard, export_id: str) -> bool:
    with yard.gateway.store.database.read() as session:
        return session.get(SpenderRow, f"export:{export_id}") is not None


def seen(yard: Yard) -> tuple[int, int]:
    """Return what is used and held of the project's budget, in nano-units."""
    wanted = select(CounterRow).where(CounterRow.key.contains(f"project:{yard.project_id}"))
    with yard.gateway.store.database.read() as session:
        rows = [row for row in session.scalars(wanted) if row.key.startswith("monthly")]
        return sum(row.used for row in rows), sum(row.leased for row in rows)


def test_the_most_is_held_and_what_was_worked_is_charged(yard: Yard) -> None:
    budget(yard, "100")
    asked = yard.export()
    estimate = asked["estimate"]
    assert 100 < estimate["seconds"] < estimate["max_seconds"]
    assert Decimal(estimate["max_cost"]) == Decimal(estimate["max_seconds"]) * PRICE
    assert Decimal(estimate["cost"]) < Decimal(estimate["max_cost"])
    assert held(yard, asked["id"]) == Decimal(estimate["max_cost"]) * 10**9
    asyncio.run(yard.queue.step())
    made = yard.client.get(f"/v1/exports/{asked['id']}").json()
    (row,) = charges(yard)
    assert row.export_milliseconds == round(made["used_seconds"] * 1000) > 0
    assert row.amount == row.export_milliseconds * PRICE / 1000
    assert (row.id, row.endpoint, row.model_id) == (asked["id"], "/v1/exports", BASE)
    assert not is_open(yard, asked["id"])
    assert seen(yard) == (int(row.amount * 10**9), 0)


def test_what_does_not_fit_the_budget_is_refused_and_nothing_is_written(yard: Yard) -> None:
    budget(yard, "0.5")
    answer = yard.client.post("/v1/exports", json={"model": BASE})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert "the export can cost" in answer.json()["error"]["message"]
    assert yard.client.get("/v1/exports").json()["data"] == []
    assert seen(yard) == (0, 0)


def test_two_that_fit_alone_do_not_both_fit(yard: Yard) -> None:
    first = yard.export()
    yard.client.post(f"/v1/exports/{first['id']}/cancel")
    budget(yard, str(Decimal(first["estimate"]["max_cost"]) * Decimal("1.5")))
    assert yard.client.post("/v1/exports", json={"model": BASE}).status_code == 200
    assert yard.client.post("/v1/exports", json={"model": BASE}).status_code in {429, 503}


def test_a_failed_export_costs_nothing(yard: Yard) -> None:
    budget(yard, "100")
    asked = yard.export()
    store = yard.gateway.store
    exports = ExportRepository(store.database, store.clock)
    taken = exports.take(asked["id"], seen_attempt=0)
    time.sleep(0.02)
    exports.write(taken.id, taken.attempt)
    ledger = ExportLedger(
        store.database, store.clock, Books(store.database, store.clock),
        Tariff(store.database, store.clock),
    )  # fmt: skip
    ledger.fail(taken.id, taken.attempt, {"code": "x", "message": "no", "param": None})
    assert charges(yard) == []
    assert seen(yard) == (0, 0)
    assert not is_open(yard, asked["id"])


def test_a_cancelled_export_costs_what_was_worked_and_once(yard: Yard) -> None:
    budget(yard, "100")
    waiting = yard.export()["id"]
    yard.client.post(f"/v1/exports/{waiting}/cancel")
    assert charges(yard) == [], "nobody had worked on it"
    asked = yard.export()["id"]
    store = yard.gateway.store
    exports = ExportRepository(store.database, store.clock)
    exports.take(asked, seen_attempt=0)
    time.sleep(0.05)
    for _ in range(2):
        ended = yard.client.post(f"/v1/exports/{asked}/cancel").json()
    (row,) = charges(yard)
    assert 50 <= row.export_milliseconds == round(ended["used_seconds"] * 1000) < 5000
    assert seen(yard)[1] == 0


def test_usage_and_costs_tell_it(yard: Yard) -> None:
    yard.made()
    (row,) = charges(yard)
    _, key = yard.gateway.store.keys.create(
        project_id=yard.project_id, name="admin", scopes=("admin",)
    )
    yard.gateway.wait_seen()
    headers = {"Authorization": f"Bearer {key}"}
    period = {"start_time": int(time.time()) - 3600, "project_ids": yard.project_id}
    usage = yard.client.get("/v1/organization/usage/exports", params=period, headers=headers)
    results = [r for bucket in usage.json()["data"] for r in bucket["results"]]
    assert [r["export_seconds"] for r in results] == [row.export_milliseconds / 1000]
    costs = yard.client.get(
        "/v1/organization/costs",
        params={**period, "start_time": int(time.time()) - 86400, "group_by": "line_item"},
        headers=headers,
    )
    results = [r for bucket in costs.json()["data"] for r in bucket["results"]]
    assert [(r["line_item"], r["amount"]["exact"]) for r in results] == [(BASE, f"{row.amount:f}")]
