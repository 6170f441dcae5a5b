"""A server somebody else runs: nothing is started, only read.

Its secret, if it has one, is a default header of the client that is passed in.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from maas.core.errors import CapabilityMissing, ConfigError, EngineUnreachable
from maas.engines.contract import EngineCapabilities, EngineLoad, EngineSpec
from maas.engines.http import answers, get_json, get_text
from maas.engines.vllm import load_of

_DEFAULT = EngineCapabilities(
    tools=True, structured_output=True, logprobs=True, n=True, seed=True, logit_bias=True
)
_FIELDS = {field.name for field in dataclasses.fields(EngineCapabilities)}


class ExternalEngine:
    """Adapter for any OpenAI-compatible server.

    Args:
        capabilities: What that server can do; by default what the OpenAI API itself has,
            without embeddings, adapters and cache salts.
    """

    name = "external"

    def __init__(self, capabilities: EngineCapabilities = _DEFAULT) -> None:
        self.capabilities = capabilities

    def command(self, spec: EngineSpec) -> list[str]:
        """Refuse: there is nothing to start.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"engine external: {spec.url} is run by somebody else")

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """Return nothing."""
        return {}

    def engine_model(self, spec: EngineSpec) -> str:
        """Return the wanted name; ``resolve_model`` finds the one the server has."""
        return spec.served_model_name

    async def is_ready(self, client: aiohttp.ClientSession, url: str) -> bool:
        """Say whether the engine answers requests now; never raises for a dead engine."""
        return await answers(client, f"{url}/v1/models") or await answers(client, f"{url}/health")

    async def load(self, client: aiohttp.ClientSession, url: str) -> EngineLoad:
        """Read how busy the engine is: known for vLLM, otherwise only that it answers.

        Raises:
            EngineUnreachable: It did not answer.
        """
        try:
            return load_of(await get_text(client, f"{url}/metrics"))
        except EngineUnreachable:
            if await self.is_ready(client, url):
                return EngineLoad()
            raise

    async def load_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str, adapter_dir: Path
    ) -> None:
        """Refuse.

        Raises:
            CapabilityMissing: Its files are not ours to write.
        """
        raise CapabilityMissing(f"engine {self.name} cannot load adapters ({adapter_name})")

    async def unload_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str
    ) -> None:
        """Refuse.

        Raises:
            CapabilityMissing: Its files are not ours to write.
        """
        raise CapabilityMissing(f"engine {self.name} cannot unload adapters ({adapter_name})")


async def resolve_model(
    client: aiohttp.ClientSession, url: str, *, wanted: str, engine_model: str | None = None
) -> str:
    """Return the name an external server knows a model by.

    Args:
        client: Carries the server's secret, if it has one.
        url: Base URL without ``/v1``.
        wanted: Our id of the model: taken where the server lists exactly it.
        engine_model: What the operator said; believed, as long as the server answers.

    Raises:
        ConfigError: The server lists several models and none is the wanted one.
        EngineUnreachable: It did not answer.
    """
    page = await get_json(client, f"{url}/v1/models")
    if engine_model:
        return engine_model
    entries = page.get("data", []) if isinstance(page, dict) else []
    ids = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
    if wanted in ids:
        return wanted
    if len(ids) == 1:
        return ids[0]
    listed = ", ".join(ids) or "none"
    raise ConfigError(
        f"{url}/v1/models has no model {wanted!r} (it lists: {listed}); "
        "say which one with the option engine_model",
        param="engine_model",
    )


def declared(flags: Mapping[str, bool]) -> EngineCapabilities:
    """Return the capabilities of an external server, the given flags over the default.

    Raises:
        ConfigError: There is no such flag; the message lists those there are.
    """
    unknown = sorted(set(flags) - _FIELDS)
    if unknown:
        raise ConfigError(
            f"no capability {unknown[0]!r}; there are: {', '.join(sorted(_FIELDS))}",
            param="capabilities",
        )
    return dataclasses.replace(_DEFAULT, **flags)
