"""``/v1/organization/projects/{project_id}/users``."""
