"""``/v1/organization/audit_logs``."""
