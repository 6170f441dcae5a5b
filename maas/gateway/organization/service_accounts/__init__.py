"""``/v1/organization/projects/{project_id}/service_accounts``."""
