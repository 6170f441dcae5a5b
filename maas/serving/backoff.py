"""The pause before something that keeps failing is started again."""

# Of an engine. Its start alone takes longer, so the pauses soon must.
FIRST_BACKOFF_S = 2.0
# 2**30 seconds are 34 years: past it a larger exponent only overflows a float.
_MAX_DOUBLINGS = 30


def backoff_s(num_failures: int, *, first_s: float, max_s: float) -> float:
    """Return the pause after the n-th failure in a row: ``first_s``, doubling, bounded."""
    doublings = min(max(num_failures - 1, 0), _MAX_DOUBLINGS)
    return min(first_s * 2.0**doublings, max_s)
