"""Our own server over onnxruntime (``maas.edge.runtime.server``): processors, and devices.

It is started by its module's name, as every engine is by its command: nothing of it is imported
here.
"""

import sys
from pathlib import Path

import aiohttp

from maas.core.errors import ConfigError
from maas.engines.contract import EngineCapabilities, EngineLoad, EngineSpec
from maas.engines.http import answers, get_text, post, refuse
from maas.engines.processors import num_threads
from maas.engines.prometheus import read_samples

_RUNNING = "maas_edge_requests_running"
_WAITING = "maas_edge_requests_waiting"
_KV_USAGE = "maas_edge_kv_cache_usage"
_TOKENS = "maas_edge_tokens_total"
_ADAPTER_TIMEOUT_S = 120.0
# What its server reads of a model's own way to write tool calls.
PARSERS = frozenset({"hermes"})


class OnnxEngine:
    """Adapter for our onnxruntime server."""

    name = "onnx"
    capabilities = EngineCapabilities(
        tools=True,
        structured_output=True,
        logprobs=True,
        n=True,
        seed=True,
        logit_bias=True,
        cache_salt=True,
        abort_on_disconnect=True,
        runtime_adapters=True,
    )

    def command(self, spec: EngineSpec) -> list[str]:
        """Return the command line of the engine's server.

        Raises:
            ConfigError: The spec asks for what this engine cannot do.
        """
        _refuse(spec.device != "cpu", f"device {spec.device!r}")
        _refuse(spec.task != "generate", f"task {spec.task!r}")
        _refuse(spec.tensor_parallel_size > 1, "tensor_parallel_size over 1")
        _refuse(spec.reasoning_parser is not None, f"reasoning parser {spec.reasoning_parser!r}")
        unread = spec.tool_call_parser not in {None, *PARSERS}
        _refuse(unread, f"tool call parser {spec.tool_call_parser!r}")
        sizes = {
            "--max-num-seqs": spec.max_num_seqs,
            "--max-model-len": spec.max_model_len,
            "--kv-cache-bytes": spec.kv_cache_bytes,
        }
        given = [(flag, str(size)) for flag, size in sizes.items() if size is not None]
        return [
            *(sys.executable, "-P", "-m", "maas.edge.runtime.server", str(spec.model_dir)),
            *("--served-model-name", spec.served_model_name),
            *("--host", spec.host, "--port", str(spec.port)),
            *("--threads", str(num_threads(spec))),
            *(part for pair in given for part in pair),
            *spec.extra_engine_args,
        ]

    def environment(self, spec: EngineSpec) -> dict[str, str]:  # noqa: ARG002 - the contract's
        """Return the variables to set on top of the inherited ones."""
        return {"TOKENIZERS_PARALLELISM": "false"}

    def engine_model(self, spec: EngineSpec) -> str:
        """Return the name the engine itself knows the model by."""
        return spec.served_model_name

    async def is_ready(self, client: aiohttp.ClientSession, url: str) -> bool:
        """Say whether the engine answers requests now; never raises for a dead engine."""
        return await answers(client, f"{url}/health")

    async def load(self, client: aiohttp.ClientSession, url: str) -> EngineLoad:
        """Read how busy the engine is.

        Raises:
            EngineUnreachable: It did not answer.
        """
        page = await get_text(client, f"{url}/metrics")
        samples = read_samples(page, (_RUNNING, _WAITING, _KV_USAGE, _TOKENS))
        return EngineLoad(
            num_running=int(samples.get(_RUNNING, 0)),
            num_waiting=int(samples.get(_WAITING, 0)),
            kv_cache_usage=samples.get(_KV_USAGE, 0.0),
            num_tokens_total=samples.get(_TOKENS),
        )

    async def load_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str, adapter_dir: Path
    ) -> None:
        """Make the ONNX form of a tuned model answer under a name; doing so twice is fine.

        Args:
            client: For HTTP.
            url: The engine's.
            adapter_name: The name.
            adapter_dir: The base with the adapter in its weights, as the server reads it.

        Raises:
            EngineError: The engine refused it.
        """
        body = {"lora_name": adapter_name, "lora_path": str(adapter_dir)}
        status, answer = await post(
            client, f"{url}/v1/load_lora_adapter", body, timeout_s=_ADAPTER_TIMEOUT_S
        )
        if status != 200:
            raise refuse(f"load adapter {adapter_name!r}", status, answer)

    async def unload_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str
    ) -> None:
        """Forget a tuned model; doing so twice is fine.

        Raises:
            EngineError: The engine refused it.
        """
        body = {"lora_name": adapter_name}
        status, answer = await post(
            client, f"{url}/v1/unload_lora_adapter", body, timeout_s=_ADAPTER_TIMEOUT_S
        )
        if status != 200:
            raise refuse(f"unload adapter {adapter_name!r}", status, answer)


def _refuse(is_asked: bool, what: str) -> None:
    if is_asked:
        raise ConfigError(f"engine onnx: cannot do {what}")
