"""``transformers serve``: for architectures vLLM does not have (CodeGen, RWKV, Baichuan's kin)."""

import sys
from pathlib import Path

import aiohttp

from maas.core.errors import CapabilityMissing, ConfigError, EngineUnreachable
from maas.engines.contract import EngineCapabilities, EngineLoad, EngineSpec
from maas.engines.http import answers
from maas.engines.processors import num_threads


class TransformersEngine:
    """Adapter for the server of transformers 5.19.

    Requests are computed one at a time. ``--continuous-batching`` exists, but in 5.19 every
    request is then sampled with the first one's settings (its stop strings, temperature and
    bias) and the KV cache takes most of the machine's memory, so it is left to
    ``extra_engine_args``. The server has no metrics, and its ``/health`` says "ok" whatever
    it holds: its load is unknown (``reports_load``).
    """

    name = "transformers"
    capabilities = EngineCapabilities(
        seed=True,
        max_completion_tokens=False,
        done_sentinel=False,
        abort_on_disconnect=True,
        reports_load=False,
    )

    def command(self, spec: EngineSpec) -> list[str]:
        """Return the command line of the engine's server.

        Raises:
            ConfigError: The spec asks for what this engine cannot do.
        """
        _refuse(spec.task != "generate", "task 'embed'")
        _refuse(spec.max_loras > 0, "LoRA adapters (max_loras)")
        _refuse(spec.tensor_parallel_size > 1, "tensor_parallel_size over 1")
        arguments = ["--host", spec.host, "--port", str(spec.port)]
        arguments += ["--device", spec.device, "--dtype", spec.dtype]
        if spec.quantization:
            arguments += ["--quantization", spec.quantization]
        if spec.trust_remote_code:
            arguments.append("--trust-remote-code")
        module = "transformers.cli.transformers"
        return [
            *(sys.executable, "-P", "-m", module, "serve", str(spec.model_dir)),
            *arguments,
            *spec.extra_engine_args,
        ]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """Return the variables to set on top of the inherited ones."""
        environment = {
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if spec.device == "cpu":
            environment["OMP_NUM_THREADS"] = str(num_threads(spec))
        return environment

    def engine_model(self, spec: EngineSpec) -> str:
        """Return the name the engine itself knows the model by: the folder it was given."""
        return str(spec.model_dir)

    async def is_ready(self, client: aiohttp.ClientSession, url: str) -> bool:
        """Say whether the engine answers requests now; never raises for a dead engine."""
        # It listens only once the model is loaded.
        return await answers(client, f"{url}/health")

    async def load(self, client: aiohttp.ClientSession, url: str) -> EngineLoad:
        """Say that the load is unknown.

        Raises:
            EngineUnreachable: It did not answer, or its batching thread has died.
        """
        if not await answers(client, f"{url}/health"):
            raise EngineUnreachable(f"GET {url}/health: not well")
        return EngineLoad()

    async def load_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str, adapter_dir: Path
    ) -> None:
        """Refuse.

        Raises:
            CapabilityMissing: This engine has no runtime adapters.
        """
        raise CapabilityMissing(f"engine {self.name} cannot load adapters ({adapter_name})")

    async def unload_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str
    ) -> None:
        """Refuse.

        Raises:
            CapabilityMissing: This engine has no runtime adapters.
        """
        raise CapabilityMissing(f"engine {self.name} cannot unload adapters ({adapter_name})")


def _refuse(is_asked: bool, what: str) -> None:
    if is_asked:
        raise ConfigError(f"engine transformers: cannot do {what}")
