"""Desired state and leases in SQL: tables, migrations and repositories.

SQLite (WAL) is the embedded default. Everything here is synchronous and short; an event
loop calls it through a thread.
"""
