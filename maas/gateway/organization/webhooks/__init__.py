"""Webhooks: addresses that hear of an organisation's events."""
