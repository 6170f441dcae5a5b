"""``/v1/organization/admin_api_keys``."""
