"""The engines there are. A new one is one module and one line here."""

from collections.abc import Mapping
from types import MappingProxyType

from maas.core.errors import ConfigError
from maas.engines.contract import EngineAdapter
from maas.engines.vllm import VllmEngine

ENGINES: Mapping[str, EngineAdapter] = MappingProxyType(
    {adapter.name: adapter for adapter in (VllmEngine(),)}
)


def get_engine(name: str) -> EngineAdapter:
    """Return the adapter of an engine.

    Raises:
        ConfigError: There is no engine of this name; the message lists those there are.
    """
    try:
        return ENGINES[name]
    except KeyError:
        raise ConfigError(
            f"no engine {name!r}; there are: {', '.join(ENGINES)}", param="engine"
        ) from None
