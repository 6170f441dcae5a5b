"""All routes of ``/v1/organization``."""

from fastapi import APIRouter

from maas.gateway.organization.admin_api_keys import routes as admin_api_keys
from maas.gateway.organization.api_keys import routes as api_keys
from maas.gateway.organization.audit_logs import routes as audit_logs
from maas.gateway.organization.project_users import routes as project_users
from maas.gateway.organization.projects import routes as projects
from maas.gateway.organization.rate_limits import routes as rate_limits
from maas.gateway.organization.service_accounts import routes as service_accounts
from maas.gateway.organization.spend_limits import routes as spend_limits
from maas.gateway.organization.usage import routes as usage
from maas.gateway.organization.users import routes as users
from maas.gateway.organization.webhooks import routes as webhooks

router = APIRouter()
for resource in (
    projects,
    # Before the keys: a key's rate limits are below its path.
    rate_limits,
    api_keys,
    service_accounts,
    project_users,
    users,
    spend_limits,
    audit_logs,
    admin_api_keys,
    usage,
    webhooks,
):
    router.include_router(resource.router)
