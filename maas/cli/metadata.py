"""Metadata as it is typed: ``NAME=VALUE``, as often as there are names."""

from collections.abc import Sequence
from typing import Annotated

import typer

from maas.core.errors import ConfigError

MetadataOption = Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeat.")]


def parse_metadata(pairs: Sequence[str] | None) -> dict[str, str] | None:
    """Return what was given; none where nothing was.

    Raises:
        ConfigError: A pair is none.
    """
    found: dict[str, str] = {}
    for pair in pairs or ():
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--metadata {pair!r}: want NAME=VALUE")
        found[name] = value
    return found or None
