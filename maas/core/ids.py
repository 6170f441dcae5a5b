"""Identifiers: a readable prefix, a sortable time part and a random part."""

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def _base32(value: int, *, length: int) -> str:
    digits: list[str] = []
    for _ in range(length):
        value, rest = divmod(value, 32)
        digits.append(ALPHABET[rest])
    return "".join(reversed(digits))


def new_id(prefix: str) -> str:
    """Return ``<prefix>-<time><random>``: 9 characters of milliseconds, 10 of randomness.

    Ids of one prefix sort by the time they were made, to the millisecond.
    """
    milliseconds = time.time_ns() // 1_000_000
    return f"{prefix}-{_base32(milliseconds, length=9)}{_base32(secrets.randbits(50), length=10)}"
