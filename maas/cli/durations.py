"""Durations as people write them: ``90s``, ``15m``, ``12h``, ``30d``, or bare seconds."""

import re

from maas.core.errors import ConfigError

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")


def parse_duration(text: str, option: str) -> float:
    """Return a duration in seconds.

    Args:
        text: As it was given.
        option: Named in the error.

    Raises:
        ConfigError: It is none.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigError(f"{option} {text!r}: want a duration such as 90s, 15m, 12h or 30d")
    return float(match[1]) * _SECONDS[match[2]]
