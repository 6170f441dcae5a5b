"""The audit log: written with the change, and a changed, removed or moved entry is noticed."""

import importlib
import json
import pkgutil

import pytest
from sqlalchemy import delete, select, text, update

import maas.store
from maas.core.errors import InvalidRequest, MaasError
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.actor import Actor, acting_as
from maas.store.aliases import AliasRepository
from maas.store.audit import FIRST_HASH
from maas.store.audit_log import AuditFilter, verify_lines
from maas.store.deployments import DeploymentRepository
from maas.store.limits import LimitKey
from maas.store.projects import ProjectChange
from maas.store.records import DeploymentStatus, LimitScope, Role
from maas.store.state import ensure_project
from maas.store.tables import Base, DeploymentRow
from maas.store.tenancy import open_tenancy
from maas.store.tenancy_tables import ApiKeyRow, AuditRow, ProjectRow

EVERYTHING = AuditFilter()
# What is no change of the control plane: leases, answers kept for a day, what requests use, and
# the log itself. A new table must come in here, or say ``__audit__``.
NOT_AUDITED = {
    "revision",
    "replicas",
    "leases",
    "audit_log",
    "audit_head",
    "idempotency_keys",
    "journal",
    "counters",
    "grants",
    "spenders",
    "webhook_deliveries",
    "budget_alerts",
    # Parts of a file that is audited once it is one; what jobs tell; content without an owner.
    "uploads",
    "upload_parts",
    "export_events",
    # What devices tell.
    "device_states",
    "device_updates",
    "device_events",
    "fine_tuning_events",
    "fine_tuning_checkpoints",
    "adapters",
}


@pytest.fixture
def tenancy(database, clock):
    return open_tenancy(database, clock)


@pytest.fixture
def project_id(database, clock):
    return ensure_project(database, clock)


def entries(tenancy):
    return [json.loads(line) for line in tenancy.audit.export()]


def tamper(database, *statements: str) -> None:
    """Change the log as somebody could who may do everything with the database."""
    with database.engine.begin() as connection:
        if database.is_embedded:
            triggers = connection.execute(
                text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            ).scalars()
            for name in list(triggers):
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            connection.execute(text("ALTER TABLE audit_log DISABLE TRIGGER ALL"))
        for statement in statements:
            connection.execute(text(statement))


def test_every_table_is_audited_or_known_not_to_be():
    for module in pkgutil.iter_modules(maas.store.__path__, "maas.store."):
        importlib.import_module(module.name)
    audited = {
        mapper.class_.__tablename__ for mapper in Base.registry.mappers if mapper.class_.__audit__
    }
    assert not audited & NOT_AUDITED
    assert audited | NOT_AUDITED == set(Base.metadata.tables)


def test_change_says_who_what_before_and_after(tenancy, project_id):
    with acting_as(Actor("api_key", "key7", "req-9")):
        tenancy.projects.modify(project_id, ProjectChange(weight=5))
    entry = entries(tenancy)[-1]
    assert (entry["actor_kind"], entry["actor_id"], entry["request_id"]) == (
        "api_key",
        "key7",
        "req-9",
    )
    assert (entry["action"], entry["resource_id"]) == ("project.updated", project_id)
    assert (entry["before"], entry["after"]) == ({"weight": 1}, {"weight": 5})
    assert entry["organization_id"] == tenancy.projects.get(project_id).organization_id


def test_endings_have_names_of_their_own(tenancy, project_id):
    organization_id = tenancy.projects.get(project_id).organization_id
    project = tenancy.projects.create(organization_id, "p")
    user = tenancy.users.create(organization_id, email="a@b", name="a", role=Role.VIEWER)
    tenancy.users.add_member(project.id, user.id, Role.VIEWER)
    key, _ = tenancy.keys.create(project_id=project.id, name="k")
    tenancy.limits.set(LimitKey(LimitScope.KEY, key.id), requests_per_minute=1)
    tenancy.limits.remove(LimitKey(LimitScope.KEY, key.id))
    tenancy.keys.revoke(key.id)
    tenancy.users.delete(organization_id, user.id)
    tenancy.projects.archive(project.id)
    actions = [entry["action"] for entry in entries(tenancy)]
    assert actions == [
        "organization.created",
        "project.created",
        "project.created",
        "user.added",
        "project.user.created",
        "api_key.created",
        "rate_limit.updated",
        "rate_limit.deleted",
        "api_key.deleted",
        "user.deleted",
        "project.user.deleted",
        "project.archived",
    ]


def test_neither_secret_nor_digest_nor_salt_is_in_the_log(tenancy, database, clock, project_id):
    _, full = tenancy.keys.create(project_id=project_id, name="k")
    DeploymentRepository(database, clock).create(
        project_id=project_id,
        model_id="m",
        engine="external",
        options={"url": "http://x", "secret": "sealed-thing"},
    )
    with database.read() as session:
        row = session.scalars(select(ApiKeyRow)).one()
    log = "\n".join(tenancy.audit.export())
    for hidden in (row.salt, row.digest, full.split("-", 3)[3], "sealed-thing"):
        assert hidden not in log


def test_what_the_controller_observes_is_no_entry(tenancy, database, clock, project_id):
    deployments = DeploymentRepository(database, clock)
    made = deployments.create(project_id=project_id, model_id="m", engine="vllm", options={})
    before = len(entries(tenancy))
    deployments.observe(made.id, status=DeploymentStatus.RUNNING, reason=None, seen_failures=0)
    deployments.record_failure(made.id, "it broke")
    deployments.postpone(made.id, status=DeploymentStatus.FAILED, reason="later", retry_at=9e9)
    deployments.try_again()
    assert len(entries(tenancy)) == before
    deployments.scale(made.id, min_replicas=2, max_replicas=2)
    assert entries(tenancy)[-1]["after"]["min_replicas"] == 2


def test_change_that_fails_leaves_no_entry(tenancy, database, project_id):
    before = entries(tenancy)

    def fail() -> None:
        with database.write() as session:
            session.get_one(ProjectRow, project_id).weight = 9
            session.flush()
            raise MaasError("half way")

    with pytest.raises(MaasError, match="half way"):
        fail()
    assert entries(tenancy) == before
    assert tenancy.audit.verify().is_whole


def test_statement_that_would_go_past_the_log_is_refused(database, project_id):
    refused = (
        update(ProjectRow).values(weight=9),
        update(DeploymentRow).values(status="failed", max_replicas=9),
        update(DeploymentRow),
        delete(ApiKeyRow),
    )
    for statement in refused:
        with pytest.raises(RuntimeError, match="audited"), database.write() as session:
            session.execute(statement)


def test_aliases_are_in_the_log_with_what_they_pointed_at(tenancy, database, clock):
    aliases = AliasRepository(database, clock)
    aliases.point("fast", "a")
    aliases.point("fast", "b")
    entry = entries(tenancy)[-1]
    assert (entry["before"]["model_id"], entry["after"]["model_id"]) == ("a", "b")


def test_prices_are_in_the_log(tenancy, database, clock):
    Tariff(database, clock).override("m", Rates(), tier="online", currency="EUR")
    entry = entries(tenancy)[-1]
    assert (entry["action"], entry["after"]["model_id"]) == ("price.created", "m")


def test_untouched_log_is_whole(tenancy, project_id):
    for n in range(5):
        tenancy.keys.create(project_id=project_id, name=f"k{n}")
    verdict = tenancy.audit.verify()
    assert (verdict.is_whole, verdict.num_entries) == (True, 7)
    assert entries(tenancy)[0]["previous_hash"] == FIRST_HASH


@pytest.fixture
def busy(tenancy, project_id):
    for n in range(6):
        tenancy.keys.create(project_id=project_id, name=f"k{n}")
    return tenancy


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor_id = 'somebody else' WHERE seq = 4",
        "UPDATE audit_log SET at = at + 1 WHERE seq = 4",
        "UPDATE audit_log SET after = NULL WHERE seq = 4",
    ],
)
def test_changed_entry_is_noticed(busy, database, statement):
    tamper(database, statement)
    verdict = busy.audit.verify()
    assert not verdict.is_whole
    assert verdict.faults == ("entry 4 was changed after it was written",)


def test_changed_entry_with_a_new_hash_is_noticed(busy, database):
    tamper(database, f"UPDATE audit_log SET hash = '{'a' * 64}' WHERE seq = 4")
    assert any("entry 5 does not follow" in fault for fault in busy.audit.verify().faults)


def test_removed_entry_is_noticed(busy, database):
    tamper(database, "DELETE FROM audit_log WHERE seq = 4")
    assert "entry 5 follows entry 3" in busy.audit.verify().faults[0]


def test_removed_first_entry_is_noticed(busy, database):
    tamper(database, "DELETE FROM audit_log WHERE seq = 1")
    assert not busy.audit.verify().is_whole


def test_removed_end_is_noticed(busy, database):
    tamper(database, "DELETE FROM audit_log WHERE seq >= 7")
    assert "its end is missing" in busy.audit.verify().faults[0]


@pytest.mark.parametrize("seq", [0, -7, 1000])
def test_forged_entry_beside_the_chain_is_noticed(busy, database, seq):
    names = ", ".join(item.name for item in AuditRow.__table__.columns if item.name != "seq")
    copied = f"SELECT {seq}, {names} FROM audit_log WHERE seq = 1"
    tamper(database, f"INSERT INTO audit_log (seq, {names}) {copied}")
    assert not busy.audit.verify().is_whole


def test_reordered_entries_are_noticed(busy, database):
    tamper(
        database,
        "UPDATE audit_log SET seq = 100 WHERE seq = 4",
        "UPDATE audit_log SET seq = 4 WHERE seq = 5",
        "UPDATE audit_log SET seq = 5 WHERE seq = 100",
    )
    assert not busy.audit.verify().is_whole


@pytest.mark.parametrize(
    "statement",
    [
        update(AuditRow).values(actor_id="x"),
        delete(AuditRow),
        text("UPDATE audit_head SET seq = 1"),
        text("DELETE FROM audit_head"),
    ],
)
def test_log_refuses_to_be_changed(busy, database, statement):
    before = entries(busy)
    with pytest.raises(MaasError, match="append-only"), database.write() as session:
        session.execute(statement)
    assert entries(busy) == before


def test_export_of_the_whole_log_verifies_by_itself(busy):
    lines = list(busy.audit.export())
    verdict = verify_lines(lines)
    assert verdict == busy.audit.verify()
    assert not verify_lines([*lines[:3], *lines[4:]]).is_whole
    assert not verify_lines([lines[1], lines[0], *lines[2:]]).is_whole
    assert not verify_lines([lines[0].replace("default", "mine"), *lines[1:]]).is_whole
    with pytest.raises(InvalidRequest, match="line 2"):
        verify_lines([lines[0], "{}"])


def test_pages_go_back_in_time_and_forth(busy):
    newest = busy.audit.list(EVERYTHING, limit=3)
    assert [entry.seq for entry in newest.items] == [8, 7, 6]
    assert newest.has_more
    older = busy.audit.list(EVERYTHING, limit=3, after="audit-6")
    assert [entry.seq for entry in older.items] == [5, 4, 3]
    newer = busy.audit.list(EVERYTHING, limit=2, before="audit-3")
    assert [entry.seq for entry in newer.items] == [5, 4]
    with pytest.raises(InvalidRequest, match="after"):
        busy.audit.list(EVERYTHING, limit=3, after="soon")


def test_filters_narrow_the_list(busy):
    made = busy.audit.list(AuditFilter(actions=("api_key.created",)), limit=100)
    assert len(made.items) == 6
    first = made.items[-1]
    for wanted in (
        AuditFilter(resource_ids=(first.resource_id,)),
        AuditFilter(actions=("api_key.created",), until=made.items[-2].at),
    ):
        assert busy.audit.list(wanted, limit=100).items == (first,)
    assert not busy.audit.list(AuditFilter(actor_ids=("nobody",)), limit=1).items
    assert not busy.audit.list(AuditFilter(organization_id="org-other"), limit=1).items
