"""All repositories of tenancy over one database."""

from dataclasses import dataclass

from maas.core.clock import Clock
from maas.store.audit_log import AuditLog
from maas.store.database import Database
from maas.store.keys import KeyRepository
from maas.store.limits import LimitRepository
from maas.store.organizations import OrganizationRepository
from maas.store.projects import ProjectRepository
from maas.store.service_accounts import ServiceAccountRepository
from maas.store.users import UserRepository


@dataclass(frozen=True)
class Tenancy:
    """Who there is and what each may use."""

    database: Database
    clock: Clock
    organizations: OrganizationRepository
    projects: ProjectRepository
    users: UserRepository
    service_accounts: ServiceAccountRepository
    keys: KeyRepository
    limits: LimitRepository
    audit: AuditLog


def open_tenancy(database: Database, clock: Clock) -> Tenancy:
    """Return the repositories over a database."""
    return Tenancy(
        database=database,
        clock=clock,
        organizations=OrganizationRepository(database, clock),
        projects=ProjectRepository(database, clock),
        users=UserRepository(database, clock),
        service_accounts=ServiceAccountRepository(database, clock),
        keys=KeyRepository(database, clock),
        limits=LimitRepository(database),
        audit=AuditLog(database),
    )
