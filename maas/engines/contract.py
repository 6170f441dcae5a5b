"""What the platform needs to know of an engine: the one contract every adapter fulfils.

An adapter holds no state and starts nothing. It says how to start the engine's own server
and how to read it; ``maas.engines.process`` does the starting and stopping.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import aiohttp

Task = Literal["generate", "embed"]


@dataclass(frozen=True)
class EngineCapabilities:
    """What an engine can do; a request for anything else is refused by this field's name.

    Attributes:
        max_completion_tokens: Knows this field; without it the gateway sends ``max_tokens``.
        done_sentinel: Ends a stream with ``data: [DONE]``; without it a chunk that has a
            ``finish_reason`` is the end.
        cache_salt: Keeps the prefix cache of one tenant apart from another's.
        abort_on_disconnect: Stops generating when the client's connection closes.
        runtime_adapters: Loads and unloads LoRA adapters while it serves.
        reports_load: Says how many requests it holds. Without it a replica is not scaled by
            load, drains for the whole ``drain_timeout_s``, and is judged hung by its processor
            time (``maas.engines.watch``).
    """

    chat: bool = True
    completions: bool = True
    embeddings: bool = False
    streaming: bool = True
    stream_usage: bool = True
    max_completion_tokens: bool = True
    done_sentinel: bool = True
    tools: bool = False
    structured_output: bool = False
    logprobs: bool = False
    n: bool = False
    seed: bool = False
    logit_bias: bool = False
    cache_salt: bool = False
    abort_on_disconnect: bool = False
    runtime_adapters: bool = False
    reports_load: bool = True


def for_model(
    capabilities: EngineCapabilities, task: Task, *, has_chat: bool, has_tools: bool
) -> EngineCapabilities:
    """Return what is left of an engine's capabilities when it serves one model.

    Args:
        capabilities: Of the engine.
        task: What the model is for.
        has_chat: Whether it has a chat template.
        has_tools: Whether anything reads its tool calls.
    """
    if task == "embed":
        return replace(capabilities, chat=False, completions=False, tools=False)
    return replace(
        capabilities,
        embeddings=False,
        chat=capabilities.chat and has_chat,
        tools=capabilities.tools and has_chat and has_tools,
    )


@dataclass(frozen=True)
class EngineSpec:
    """All an adapter needs to start one engine.

    Attributes:
        served_model_name: Name the engine answers to.
        model_dir: Folder of prepared weights (safetensors, config, tokenizer).
        device: Where it computes.
        cpu_ids: Processors it may use (CPU only); none means all that its parent may use.
        dtype: Torch dtype name (``bfloat16``) or ``auto``.
        quantization: The engine's name of a weight quantisation, or none.
        kv_cache_bytes: Memory for the KV cache in bytes (CPU only).
        gpu_memory_utilization: Share of a GPU's memory it may take, 0 to 1.
        tool_call_parser: The engine's name of the parser that reads this model's tool calls;
            none turns tools off.
        reasoning_parser: The engine's name of the parser that tells reasoning from answer.
        max_loras: LoRA adapters that one batch can mix; 0 serves none.
        max_cpu_loras: Adapters kept in memory beside them; others are read from disk when asked.
        lora_modules: Layers that adapters may change, by their names in the weights; none means
            all that the engine can.
        cache_dir: Folder for compiled kernels and the like, kept between starts.
        extra_engine_args: Command-line arguments handed through as they are.
    """

    served_model_name: str
    model_dir: Path
    port: int
    task: Task = "generate"
    host: str = "127.0.0.1"
    device: Literal["cpu", "cuda"] = "cpu"
    cpu_ids: tuple[int, ...] = ()
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    max_loras: int = 0
    max_lora_rank: int = 16
    max_cpu_loras: int = 0
    lora_modules: tuple[str, ...] = ()
    trust_remote_code: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    cache_dir: Path | None = None
    extra_engine_args: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Base URL of the engine's server, without ``/v1``."""
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is.

    Attributes:
        num_running: Requests being computed.
        num_waiting: Requests in its queue.
        kv_cache_usage: Share of the KV cache in use, 0 to 1.
        num_tokens_total: Tokens processed since the start (prompt and completion); an engine
            that holds running requests while this stands still has hung. None: cannot tell.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    num_tokens_total: float | None = None


class EngineAdapter(Protocol):
    """The contract. Every method that talks to an engine takes the client and the base URL.

    A secret the engine asks for is a default header of that client, so no adapter sees it.
    """

    name: str
    capabilities: EngineCapabilities

    def command(self, spec: EngineSpec) -> list[str]:
        """Return the command line of the engine's server.

        Raises:
            ConfigError: The spec asks for what this engine cannot do.
        """
        ...

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """Return the variables to set on top of the inherited ones."""
        ...

    def engine_model(self, spec: EngineSpec) -> str:
        """Return the name the engine itself knows the model by: ``model`` in its requests."""
        ...

    async def is_ready(self, client: aiohttp.ClientSession, url: str) -> bool:
        """Say whether the engine answers requests now; never raises for a dead engine."""
        ...

    async def load(self, client: aiohttp.ClientSession, url: str) -> EngineLoad:
        """Read how busy the engine is.

        Raises:
            EngineUnreachable: It did not answer.
        """
        ...

    async def load_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str, adapter_dir: Path
    ) -> None:
        """Make a LoRA adapter answer under ``adapter_name``; doing so twice is fine.

        Raises:
            CapabilityMissing: This engine has no runtime adapters.
            EngineError: The engine refused it.
        """
        ...

    async def unload_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str
    ) -> None:
        """Forget a LoRA adapter; doing so twice is fine.

        Raises:
            CapabilityMissing: This engine has no runtime adapters.
            EngineError: The engine refused it.
        """
        ...
