"""Who may do what: the one table of roles and permissions."""

from enum import StrEnum

from maas.store.records import Role


class Permission(StrEnum):
    """Something a key may do."""

    INFERENCE = "inference"
    """Ask models."""
    READ = "read"
    """See projects, keys (never their secrets), people, deployments, files and jobs."""
    KEYS = "keys"
    """Make, rotate and revoke keys of a project."""
    FILES = "files"
    """Upload and delete files."""
    JOBS = "jobs"
    """Run fine-tuning, batch and evaluation jobs."""
    DEPLOYMENTS = "deployments"
    """Deploy and scale models."""
    USAGE = "usage"
    """See usage and costs."""
    LIMITS = "limits"
    """Change rate limits and budgets."""
    MEMBERS = "members"
    """Add and remove people, service accounts and projects."""
    ORGANIZATION = "organization"
    """Make keys that administer the organisation."""
    AUDIT = "audit"
    """Read the audit log."""
    DEVICE = "device"
    """Report as a device, and read the bundles it should run: of a device's own key alone."""


ALL = frozenset(Permission) - {Permission.DEVICE}
OF_ROLE: dict[Role, frozenset[Permission]] = {
    Role.OWNER: ALL,
    Role.DEVELOPER: frozenset(
        {
            Permission.INFERENCE,
            Permission.READ,
            Permission.KEYS,
            Permission.FILES,
            Permission.JOBS,
            Permission.DEPLOYMENTS,
            Permission.USAGE,
        }
    ),
    Role.BILLING: frozenset({Permission.READ, Permission.USAGE, Permission.LIMITS}),
    Role.VIEWER: frozenset({Permission.READ}),
}
# Of keys that nobody owns.
INFERENCE_SCOPE, ORGANIZATION_SCOPE, ADMIN_SCOPE = "inference", "organization", "admin"
DEVICE_SCOPE, FALLBACK_SCOPE = "device", "device_fallback"
OF_SCOPE: dict[str, frozenset[Permission]] = {
    # All that an application does with its project: ask, upload, tune.
    INFERENCE_SCOPE: frozenset({Permission.INFERENCE, Permission.FILES, Permission.JOBS}),
    ORGANIZATION_SCOPE: ALL - {Permission.INFERENCE},
    ADMIN_SCOPE: ALL,
    DEVICE_SCOPE: frozenset({Permission.DEVICE}),
    # Beside it, and only with the one model that the key names: no files, no jobs.
    FALLBACK_SCOPE: frozenset({Permission.INFERENCE}),
}
