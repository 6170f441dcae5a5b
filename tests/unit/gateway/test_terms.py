"""What a project, its limits and the prices say is what its requests are admitted on."""

from decimal import Decimal

import pytest

from maas.core.errors import AuthenticationFailed
from maas.gateway.relay.fairness import Priority
from maas.gateway.relay.terms import TermsBook
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store import records
from maas.store.limits import LimitKey
from maas.store.projects import ProjectChange
from maas.store.records import LimitScope
from maas.store.state import StateReader
from maas.store.tenancy import open_tenancy

NUMBERS = {
    "requests_per_minute": 1,
    "tokens_per_minute": 2,
    "concurrent_requests": 3,
    "tokens_per_day": 4,
    "monthly_budget": Decimal(5),
}


@pytest.fixture
def tenancy(database, clock):
    return open_tenancy(database, clock)


@pytest.fixture
def key(tenancy):
    project = tenancy.projects.default_of(tenancy.organizations.create("acme").id)
    return tenancy.keys.create(project_id=project.id, name="k")[0]


@pytest.fixture
def book(database, clock):
    def read() -> TermsBook:
        prices = Tariff(database, clock).in_force()
        return TermsBook(StateReader(database, clock).read(), prices)

    return read


def test_weight_and_priority_of_the_project_decide_its_turn(tenancy, key, book):
    terms = book().terms_of(key.id, "tiny")
    assert (terms.weight, terms.priority) == (1.0, Priority.ONLINE)
    change = ProjectChange(weight=3, priority=records.Priority.BACKGROUND)
    tenancy.projects.modify(key.project_id, change)
    terms = book().terms_of(key.id, "tiny")
    assert (terms.weight, terms.priority) == (3.0, Priority.BACKGROUND)


@pytest.mark.parametrize(
    ("priority", "tier", "price"), [("online", "default", 2), ("batch", "batch", 1)]
)
def test_priority_of_the_project_is_its_tier_of_prices(
    database, clock, tenancy, key, book, priority, tier, price
):
    for name, amount in (("default", 2), ("batch", 1)):
        rates = Rates(Decimal(amount))
        Tariff(database, clock).override("tiny", rates, tier=name, currency="USD")
    change = ProjectChange(priority=records.Priority(priority))
    tenancy.projects.modify(key.project_id, change)
    terms = book().terms_of(key.id, "tiny")
    assert (terms.price.tier, terms.price.rates.input_per_million) == (tier, price)


def test_every_number_of_every_limit_about_a_request_counts(tenancy, key, book):
    organization_id = tenancy.projects.get(key.project_id).organization_id
    subjects = {
        f"{scope}:{scope_id}{suffix}": LimitKey(LimitScope(scope), scope_id, model)
        for scope, scope_id in (
            ("organization", organization_id),
            ("project", key.project_id),
            ("key", key.id),
        )
        for model, suffix in ((None, ""), ("tiny", "/model:tiny"))
    }
    subjects["model:tiny"] = LimitKey(LimitScope.MODEL, "tiny")
    for about in subjects.values():
        tenancy.limits.set(about, **NUMBERS)
    caps = book().terms_of(key.id, "tiny").caps
    assert {(cap.metric.value, cap.subject) for cap in caps} == {
        (name, subject) for name in NUMBERS for subject in subjects
    }
    amounts = {cap.metric.value: cap.amount for cap in caps}
    assert amounts == {**NUMBERS, "monthly_budget": 5 * 10**9}
    # Those of another model, project or key are not about it.
    others = {cap.subject for cap in book().terms_of(key.id, "other").caps}
    assert others == {subject for subject in subjects if "tiny" not in subject}


def test_key_that_is_no_more_has_no_terms(book):
    with pytest.raises(AuthenticationFailed):
        book().terms_of("gone", "tiny")
