"""The engines there are. A new one is one module and one line here."""

from collections.abc import Mapping
from types import MappingProxyType

from maas.core.errors import ConfigError
from maas.engines.contract import EngineAdapter
from maas.engines.external import ExternalEngine
from maas.engines.onnx import OnnxEngine
from maas.engines.transformers_serve import TransformersEngine
from maas.engines.vllm import VllmEngine

_ADAPTERS: tuple[EngineAdapter, ...] = (
    VllmEngine(),
    OnnxEngine(),
    TransformersEngine(),
    ExternalEngine(),
)
ENGINES: Mapping[str, EngineAdapter] = MappingProxyType({a.name: a for a in _ADAPTERS})


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
