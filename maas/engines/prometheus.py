"""Reads a few numbers out of a Prometheus text page without parsing the rest of it."""

from collections.abc import Iterable


def read_samples(page: str, names: Iterable[str]) -> dict[str, float]:
    """Return the sum over all label sets of each named sample that the page has.

    A page of vLLM holds some 700 lines, read once a second a replica: only lines that start
    with a wanted name are looked at. Timestamps after the value are not expected.
    """
    wanted = tuple(names)
    found: dict[str, float] = {}
    for line in page.splitlines():
        if not line.startswith(wanted):
            continue
        name = line.partition("{")[0].partition(" ")[0]
        if name in wanted:
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found
