"""``/v1/adapters``: adapters that were tuned elsewhere."""
