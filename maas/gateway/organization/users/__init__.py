"""``/v1/organization/users``."""
