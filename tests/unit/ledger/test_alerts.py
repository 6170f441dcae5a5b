"""Budget alerts: who hears of which budget, and how often."""

import json
from decimal import Decimal

import pytest
from sqlalchemy import select

from maas.ledger.alerts import BudgetAlerts
from maas.ledger.books import Want
from maas.ledger.caps import Cap, Metric, subject_of
from maas.ledger.entries import Entry, Exactness, Payer
from maas.store.limits import LimitKey
from maas.store.money import to_nanos
from maas.store.records import LimitScope
from maas.store.state import ensure_project
from maas.store.tenancy import open_tenancy
from maas.store.webhook_tables import DeliveryRow, WebhookRow
from maas.store.webhooks import WebhookRepository

MONTH_S = 32 * 86_400


class Site:
    """Two organisations with a webhook each, beside the platform's own."""

    def __init__(self, database, books, clock) -> None:
        self.database, self.books, self.clock = database, books, clock
        self.tenancy = open_tenancy(database, clock)
        ensure_project(database, clock)
        webhooks = WebhookRepository(database, clock, str)
        for name in ("acme", "other"):
            self.tenancy.organizations.create(name)
        for organization in self.tenancy.organizations.list():
            webhooks.create(organization.id, name=organization.name, url="https://x.example/")
        self.acme = self.tenancy.organizations.find("acme")
        self.project = self.tenancy.projects.default_of(self.acme.id)
        self.key, _ = self.tenancy.keys.create(project_id=self.project.id, name="k")
        self.alerts = BudgetAlerts(database, clock)
        self.books.open("gw")

    def limit(self, scope: LimitScope, scope_id: str, budget: str) -> None:
        """Set a budget whose counter has begun, as the first request begins it."""
        self.tenancy.limits.set(LimitKey(scope, scope_id), monthly_budget=Decimal(budget))
        cap = Cap(
            Metric.MONTHLY_BUDGET, subject_of(scope.value, scope_id), to_nanos(Decimal(budget))
        )
        want = Want(cap, cap.window(self.clock.now()), need=0, wish=0)
        self.books.grant("gw", [want])

    def spend(self, amount: str) -> None:
        entry = Entry(
            id=f"entry-{self.clock.now()}-{amount}",
            at=self.clock.now(),
            payer=Payer(self.acme.id, self.project.id, self.key.id),
            request_id="req",
            endpoint="/v1/completions",
            model_id="tiny",
            tier="default",
            price_id="x",
            currency="USD",
            amount=Decimal(amount),
            exactness=Exactness.EXACT,
            num_requests=1,
        )
        assert self.books.charge([entry]) == 1

    def heard(self) -> list[tuple[str, int]]:
        """Return who was told of which percentage."""
        with self.database.read() as session:
            rows = session.execute(
                select(WebhookRow.name, DeliveryRow.body).join(
                    WebhookRow, WebhookRow.id == DeliveryRow.webhook_id
                )
            ).all()
        return sorted((name, json.loads(body)["data"]["percent"]) for name, body in rows)


@pytest.fixture
def site(database, books, clock) -> Site:
    return Site(database, books, clock)


@pytest.mark.parametrize(
    ("scope", "hearer"),
    [
        (LimitScope.ORGANIZATION, "acme"),
        (LimitScope.PROJECT, "acme"),
        (LimitScope.KEY, "acme"),
        # What all tenants spend together is the operator's to know.
        (LimitScope.MODEL, "default"),
    ],
)
def test_a_budget_is_told_to_whose_it_is_and_to_nobody_else(site, scope, hearer):
    named = {
        LimitScope.ORGANIZATION: site.acme.id,
        LimitScope.PROJECT: site.project.id,
        LimitScope.KEY: site.key.id,
        LimitScope.MODEL: "tiny",
    }
    site.limit(scope, named[scope], "10")
    site.spend("4.999999999")
    assert site.alerts.check() == 0
    site.spend("0.000000001")
    assert site.alerts.check() == 1
    assert site.heard() == [(hearer, 50)]


def test_each_threshold_is_told_once_a_month(site):
    site.limit(LimitScope.PROJECT, site.project.id, "10")
    site.spend("10")
    assert [site.alerts.check() for _ in range(2)] == [3, 0]
    site.clock.advance(MONTH_S)
    site.limit(LimitScope.PROJECT, site.project.id, "10")
    site.spend("8")
    assert [site.alerts.check() for _ in range(2)] == [2, 0]
    assert [percent for _, percent in site.heard()] == [50, 50, 80, 80, 100]
