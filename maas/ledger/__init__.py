"""Prices, limits, reservations, journal, usage: what was used, what it costs, what is allowed."""
