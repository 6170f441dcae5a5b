"""Organisations, projects, people, keys and limits as the store keeps them."""

import importlib
import pkgutil
from decimal import Decimal

import pytest
from sqlalchemy import text

import maas.store
from maas.core.errors import Conflict, InvalidRequest, MaasError, NotFound
from maas.store.database import Database
from maas.store.key_terms import KeyTerms
from maas.store.limits import LimitKey
from maas.store.living_keys import EXPIRED_KNOWN_S
from maas.store.pages import Window
from maas.store.projects import ProjectChange
from maas.store.records import LimitScope, Priority, Role
from maas.store.state import StateReader, ensure_project
from maas.store.tables import Base
from maas.store.tenancy import open_tenancy

# Tables that lead to a project or an organisation, by a column of their own or of what they point
# at. Every other table must be one of the platform's: nothing in it is a tenant's own.
OWNERS = {"project_id", "organization_id"}
OF_THE_PLATFORM = {
    "organizations",  # the tenants themselves
    "aliases",  # names of models, which all tenants ask; so are prices
    "prices",
    "signing_keys",  # one key signs the bundles of all
    "audit_head",
    "revision",
    "leases",
    # Sums by the key of a limit, which names its owner; shown to nobody but as that limit.
    "counters",
    "grants",
    "spenders",
    "budget_alerts",
    # Content by its hash, reached only through a project's tuned models.
    "adapters",
}


def test_every_row_of_every_table_belongs_to_a_tenant_or_to_the_platform():
    for module in pkgutil.iter_modules(maas.store.__path__, "maas.store."):
        importlib.import_module(module.name)
    tables = Base.metadata.tables

    def is_owned(name: str) -> bool:
        table = tables[name]
        return bool(OWNERS & set(table.columns.keys())) or any(
            not column.nullable and is_owned(key.column.table.name)
            for column in table.columns
            for key in column.foreign_keys
        )

    unowned = {name for name in tables if not is_owned(name)}
    assert unowned == OF_THE_PLATFORM


@pytest.fixture
def tenancy(database, clock):
    return open_tenancy(database, clock)


@pytest.fixture
def organization(tenancy):
    return tenancy.organizations.create("acme")


@pytest.fixture
def project(tenancy, organization):
    return tenancy.projects.default_of(organization.id)


def test_store_of_the_first_version_keeps_its_keys_and_projects(empty_store_url, clock):
    database = Database(empty_store_url)
    database.migrator().run("0001")
    with database.engine.begin() as connection:
        for name in ("default", "other"):
            connection.execute(
                text("INSERT INTO projects (id, name, created_at) VALUES (:id, :name, 5)"),
                {"id": f"proj-{name}", "name": name},
            )
        connection.execute(
            text(
                "INSERT INTO api_keys (id, project_id, name, salt, digest, scopes, created_at) "
                "VALUES ('key1', 'proj-other', 'k', 's', 'd', '[\"inference\"]', 6)"
            )
        )
    database.migrate()
    tenancy = open_tenancy(database, clock)
    (organization,) = tenancy.organizations.list()
    assert (organization.name, organization.created_at) == ("default", 5)
    page = tenancy.projects.list(organization.id, Window())
    assert {item.name for item in page.items} == {"default", "other"}
    assert {(item.weight, item.priority) for item in page.items} == {(1, Priority.ONLINE)}
    (key,) = tenancy.keys.list()
    assert (key.project_id, key.scopes) == ("proj-other", ("inference",))
    assert (key.models, key.endpoints, key.networks, key.expires_at) == ((), (), (), None)
    assert ensure_project(database, clock) == "proj-default"
    database.close()


def test_project_names_are_unique_in_their_organisation_only(tenancy, organization):
    other = tenancy.organizations.create("other")
    tenancy.projects.create(organization.id, "shop")
    tenancy.projects.create(other.id, "shop")
    with pytest.raises(Conflict, match="shop"):
        tenancy.projects.create(organization.id, "shop")
    with pytest.raises(Conflict, match="acme"):
        tenancy.organizations.create("acme")


def test_project_of_another_organisation_is_not_found_by_name_or_id(tenancy, organization):
    other = tenancy.organizations.create("other")
    made = tenancy.projects.create(other.id, "shop")
    for named in ("shop", made.id):
        assert tenancy.projects.find(other.id, named) == made
        with pytest.raises(NotFound):
            tenancy.projects.find(organization.id, named)


@pytest.mark.parametrize("weight", [0, -1, 1001])
def test_impossible_weight_is_refused(tenancy, organization, project, weight):
    with pytest.raises(InvalidRequest, match="weight"):
        tenancy.projects.create(organization.id, "p", weight=weight)
    with pytest.raises(InvalidRequest, match="weight"):
        tenancy.projects.modify(project.id, ProjectChange(weight=weight))


def test_archived_project_is_changed_no_more(tenancy, organization):
    made = tenancy.projects.create(organization.id, "p")
    tenancy.projects.archive(made.id)
    with pytest.raises(Conflict, match="archived"):
        tenancy.projects.modify(made.id, ProjectChange(name="q"))
    tenancy.organizations.archive(organization.id)
    with pytest.raises(NotFound):
        tenancy.projects.create(organization.id, "late")


def test_pages_hold_everything_once_in_both_orders(tenancy, organization, clock):
    for n in range(7):
        clock.advance(n % 2)  # some of the same moment
        tenancy.projects.create(organization.id, f"p{n}")
    for is_newest_first in (False, True):
        seen, after = [], None
        while True:
            window = Window(after=after, limit=3, is_newest_first=is_newest_first)
            page = tenancy.projects.list(organization.id, window)
            seen += [item.id for item in page.items]
            if not page.has_more:
                break
            after = seen[-1]
        assert len(seen) == len(set(seen)) == 8
    with pytest.raises(InvalidRequest, match="after"):
        tenancy.projects.list(organization.id, Window(after="proj-nowhere"))


def test_removing_people_and_programs_revokes_their_keys(tenancy, organization, project):
    user = tenancy.users.create(organization.id, email="a@b", name="a", role=Role.OWNER)
    account = tenancy.service_accounts.create(project.id, name="s", role=Role.VIEWER)
    tenancy.users.add_member(project.id, user.id, Role.DEVELOPER)
    for terms in (KeyTerms(user_id=user.id), KeyTerms(service_account_id=account.id), KeyTerms()):
        tenancy.keys.create(project_id=project.id, name="k", terms=terms)
    tenancy.users.delete(organization.id, user.id)
    tenancy.service_accounts.delete(project.id, account.id)
    alive = [key for key in tenancy.keys.list() if key.revoked_at is None]
    assert [(key.user_id, key.service_account_id) for key in alive] == [(None, None)]
    with pytest.raises(NotFound):
        tenancy.users.get_member(project.id, user.id)
    # The address is free again.
    tenancy.users.create(organization.id, email="a@b", name="a", role=Role.OWNER)


def test_key_for_somebody_of_another_organisation_is_refused(tenancy, organization, project):
    other = tenancy.organizations.create("other")
    first = tenancy.projects.default_of(other.id)
    stranger = tenancy.users.create(other.id, email="a@b", name="a", role=Role.OWNER)
    robot = tenancy.service_accounts.create(first.id, name="s", role=Role.OWNER)
    for terms in (
        KeyTerms(user_id=stranger.id),
        KeyTerms(service_account_id=robot.id),
        KeyTerms(user_id="user-nobody"),
    ):
        with pytest.raises(NotFound):
            tenancy.keys.create(project_id=project.id, name="k", terms=terms)
    with pytest.raises(NotFound):
        tenancy.users.add_member(project.id, stranger.id, Role.OWNER)


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        (KeyTerms(networks=("10.0.0",)), "networks"),
        (KeyTerms(endpoints=("v1/chat",)), "endpoints"),
        (KeyTerms(expires_at=1.0), "expires_at"),
        (KeyTerms(models=("m",) * 101), "models"),
    ],
)
def test_terms_that_make_no_sense_are_refused_by_name(tenancy, project, terms, named):
    with pytest.raises(InvalidRequest) as refused:
        tenancy.keys.create(project_id=project.id, name="k", terms=terms)
    assert refused.value.context["param"] == named


def test_rotation_keeps_terms_limits_and_lifetime(tenancy, project, clock):
    terms = KeyTerms(models=("m",), networks=("10.0.0.0/8",), expires_at=clock.now() + 1000)
    old, _ = tenancy.keys.create(project_id=project.id, name="k", terms=terms)
    tenancy.limits.set(LimitKey(LimitScope.KEY, old.id, "m"), tokens_per_minute=5)
    clock.advance(400)
    new, value = tenancy.keys.rotate(old.id, overlap_s=60)
    assert value.startswith(f"sk-maas-{new.id}-")
    assert (new.models, new.networks) == (old.models, old.networks)
    assert new.expires_at == clock.now() + 1000
    limit = tenancy.limits.get(LimitKey(LimitScope.KEY, new.id, "m"))
    assert limit is not None
    assert limit.tokens_per_minute == 5
    replaced = tenancy.keys.get(old.id)
    assert (replaced.replaced_by, replaced.expires_at) == (new.id, clock.now() + 60)


def test_overlap_never_lengthens_a_life(tenancy, project, clock):
    terms = KeyTerms(expires_at=clock.now() + 10)
    old, _ = tenancy.keys.create(project_id=project.id, name="k", terms=terms)
    tenancy.keys.rotate(old.id, overlap_s=3600)
    assert tenancy.keys.get(old.id).expires_at == clock.now() + 10


def test_limit_is_one_for_each_scope_and_model(tenancy, organization, project):
    about = LimitKey(LimitScope.PROJECT, project.id)
    tenancy.limits.set(about, requests_per_minute=5, monthly_budget=Decimal("0.000000001"))
    tenancy.limits.set(about, tokens_per_day=9)
    tenancy.limits.set(LimitKey(LimitScope.PROJECT, project.id, "m"), requests_per_minute=1)
    both = tenancy.limits.list(project_id=project.id)
    assert [limit.model for limit in both] == [None, "m"]
    assert (both[0].requests_per_minute, both[0].tokens_per_day) == (5, 9)
    assert both[0].monthly_budget == Decimal("0.000000001")
    assert tenancy.limits.list(organization_id=organization.id) == both


def test_limit_without_numbers_is_none(tenancy, project):
    about = LimitKey(LimitScope.PROJECT, project.id)
    tenancy.limits.set(about, requests_per_minute=None)
    assert tenancy.limits.list() == ()
    tenancy.limits.set(about, requests_per_minute=5)
    tenancy.limits.set(about, requests_per_minute=None)
    assert tenancy.limits.list() == ()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (LimitKey(LimitScope.PROJECT, "proj-nowhere"), {"requests_per_minute": 1}),
        (LimitKey(LimitScope.KEY, "keynowhere"), {"requests_per_minute": 1}),
        (LimitKey(LimitScope.ORGANIZATION, "org-nowhere"), {"requests_per_minute": 1}),
        (LimitKey(LimitScope.MODEL, "m", "m"), {"requests_per_minute": 1}),
        (LimitKey(LimitScope.MODEL, "m"), {"requests_per_minute": -1}),
        (LimitKey(LimitScope.MODEL, "m"), {"requests_per_hour": 1}),
        (LimitKey(LimitScope.MODEL, "m"), {"monthly_budget": Decimal("1e10")}),
    ],
)
def test_limit_that_makes_no_sense_is_refused(tenancy, key, values):
    with pytest.raises(MaasError):
        tenancy.limits.set(key, **values)
    assert tenancy.limits.list() == ()


def test_state_holds_all_of_it_and_moves_with_each_change(tenancy, database, clock, project):
    reader = StateReader(database, clock)
    before = reader.read()
    user = tenancy.users.create(project.organization_id, email="a@b", name="a", role=Role.OWNER)
    tenancy.users.add_member(project.id, user.id, Role.VIEWER)
    account = tenancy.service_accounts.create(project.id, name="s", role=Role.VIEWER)
    limit = tenancy.limits.set(LimitKey(LimitScope.PROJECT, project.id), requests_per_minute=1)
    after = reader.read(before)
    assert after.revision == before.revision + 4
    assert after.users == (user,)
    assert [(member.user_id, member.role) for member in after.members] == [(user.id, "viewer")]
    assert after.service_accounts == (account,)
    assert after.limits == (limit,)
    assert project in after.projects
    assert reader.read(after) == after


def test_together_is_one_transaction(tenancy, database, organization):
    def fail() -> None:
        with database.together():
            tenancy.projects.create(organization.id, "a")
            tenancy.projects.create(organization.id, "b")
            assert tenancy.projects.find(organization.id, "a").name == "a"
            raise MaasError("half way")

    before = tenancy.projects.list(organization.id, Window())
    with pytest.raises(MaasError, match="half way"):
        fail()
    assert tenancy.projects.list(organization.id, Window()) == before


def test_step_that_fails_in_a_joint_transaction_takes_only_itself_back(
    tenancy, database, organization
):
    with database.together():
        tenancy.projects.create(organization.id, "a")
        with pytest.raises(Conflict):
            tenancy.projects.create(organization.id, "a")
        tenancy.projects.create(organization.id, "b")
    page = tenancy.projects.list(organization.id, Window())
    assert [item.name for item in page.items] == ["default", "a", "b"]


def test_gateways_need_not_know_keys_that_are_over(tenancy, database, clock, project):
    reader = StateReader(database, clock)
    kept, _ = tenancy.keys.create(project_id=project.id, name="kept")
    gone, _ = tenancy.keys.create(project_id=project.id, name="gone")
    timed = KeyTerms(expires_at=clock.now() + 10)
    ended, _ = tenancy.keys.create(project_id=project.id, name="ended", terms=timed)
    tenancy.keys.revoke(gone.id)
    clock.advance(11)
    # Its owner is told for a while that it has expired.
    assert {key.id for key in reader.read().keys} == {kept.id, ended.id}
    clock.advance(EXPIRED_KNOWN_S)
    assert {key.id for key in reader.read().keys} == {kept.id}


def test_project_that_is_there_is_found_without_a_change(database, clock):
    first = ensure_project(database, clock)
    revision = StateReader(database, clock).read().revision
    assert ensure_project(database, clock) == first
    assert StateReader(database, clock).read().revision == revision
    assert ensure_project(database, clock, "other") != first
