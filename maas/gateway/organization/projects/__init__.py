"""``/v1/organization/projects``."""
