"""``/v1/organization/projects/{project_id}/api_keys``."""
