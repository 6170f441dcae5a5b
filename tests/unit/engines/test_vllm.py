from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from maas.core.errors import ConfigError
from maas.engines.contract import EngineSpec, for_model
from maas.engines.prometheus import read_samples
from maas.engines.vllm import VllmEngine, load_of

SPEC = EngineSpec(served_model_name="m", model_dir=Path("weights"), port=1234)
VLLM = VllmEngine()

PAGE = """\
# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 1.5e+03
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 7.0
"""


def pairs(command: list[str]) -> dict[str, str]:
    return dict(pairwise(command))


def test_server_listens_on_loopback_under_the_given_name():
    flags = pairs(VLLM.command(SPEC))
    assert flags["--host"] == "127.0.0.1"
    assert flags["--port"] == "1234"
    assert flags["--served-model-name"] == "m"


def test_one_rank_on_processors_runs_in_the_engine_core_with_all_its_threads():
    spec = replace(SPEC, cpu_ids=(4, 5, 6), kv_cache_bytes=2**28)
    flags, environment = pairs(VLLM.command(spec)), VLLM.environment(spec)
    assert flags["--distributed-executor-backend"] == "uni"
    assert flags["--kv-cache-memory-bytes"] == str(2**28)
    assert "--enforce-eager" in VLLM.command(spec)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_several_ranks_on_processors_are_bound_to_a_share_each():
    spec = replace(SPEC, cpu_ids=(0, 1, 2, 3), tensor_parallel_size=2)
    assert VLLM.environment(spec)["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2,3"
    assert "uni" not in VLLM.command(spec)


def test_gpu_start_has_gpu_arguments_and_no_thread_binding():
    spec = replace(SPEC, device="cuda", tensor_parallel_size=2, kv_cache_bytes=2**30)
    flags = pairs(VLLM.command(spec))
    assert flags["--tensor-parallel-size"] == "2"
    assert flags["--gpu-memory-utilization"] == "0.9"
    assert "--enforce-eager" not in flags
    assert "--kv-cache-memory-bytes" not in flags
    assert not [name for name in VLLM.environment(spec) if "OMP" in name]


def test_adapters_can_be_changed_at_run_time_only_where_they_are_wanted():
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in VLLM.environment(SPEC)
    assert "--enable-lora" not in VLLM.command(SPEC)
    spec = replace(SPEC, max_loras=4, max_lora_rank=32)
    assert VLLM.environment(spec)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    flags = pairs(VLLM.command(spec))
    assert (flags["--max-loras"], flags["--max-lora-rank"]) == ("4", "32")


def test_embedding_engine_with_adapters_is_refused():
    with pytest.raises(ConfigError, match="LoRA adapters"):
        VLLM.command(replace(SPEC, task="embed", max_loras=1))


def test_nothing_is_sent_home_and_no_hub_is_asked():
    environment = VLLM.environment(SPEC)
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_the_operators_arguments_come_last():
    spec = replace(SPEC, extra_engine_args=("--no-enforce-eager",))
    command = VLLM.command(spec)
    assert command.index("--no-enforce-eager") > command.index("--enforce-eager")


def test_code_from_weights_runs_only_when_the_spec_says_so():
    assert "--trust-remote-code" not in VLLM.command(SPEC)
    assert "--trust-remote-code" in VLLM.command(replace(SPEC, trust_remote_code=True))


def test_tool_parser_turns_tools_on():
    assert "--enable-auto-tool-choice" not in VLLM.command(SPEC)
    flags = pairs(VLLM.command(replace(SPEC, tool_call_parser="hermes")))
    assert flags["--tool-call-parser"] == "hermes"


def test_reasoning_parser_is_handed_on():
    assert "--reasoning-parser" not in VLLM.command(SPEC)
    flags = pairs(VLLM.command(replace(SPEC, reasoning_parser="qwen3")))
    assert flags["--reasoning-parser"] == "qwen3"


def test_a_model_offers_no_more_than_it_and_its_engine_can():
    both = for_model(VLLM.capabilities, "generate", has_chat=True, has_tools=True)
    assert (both.chat, both.tools, both.embeddings) == (True, True, False)
    base = for_model(VLLM.capabilities, "generate", has_chat=False, has_tools=True)
    assert (base.chat, base.tools, base.completions) == (False, False, True)
    assert not for_model(VLLM.capabilities, "generate", has_chat=True, has_tools=False).tools
    embedder = for_model(VLLM.capabilities, "embed", has_chat=True, has_tools=True)
    assert (embedder.chat, embedder.tools, embedder.embeddings) == (False, False, True)


def test_load_sums_engines_and_ignores_names_that_only_start_alike():
    load = load_of(PAGE)
    assert (load.num_running, load.num_waiting) == (3, 4)
    assert load.kv_cache_usage == 0.25
    assert load.num_tokens_total == 1500.0


def test_page_of_another_server_has_no_token_count():
    assert load_of("process_cpu_seconds_total 1.0\n").num_tokens_total is None


def test_samples_without_labels_are_read_too():
    assert read_samples("a 1.5\nab 2\n", ["a"]) == {"a": 1.5}


def test_adapters_on_processors_go_through_the_server_that_groups_them():
    spec = replace(SPEC, max_loras=4, max_cpu_loras=8, lora_modules=("o_proj", "q_proj"))
    command = VLLM.command(spec)
    assert "maas.engines.vllm_server" in command
    assert pairs(command)["--max-cpu-loras"] == "8"
    start = command.index("--lora-target-modules")
    assert command[start + 1 : start + 3] == ["o_proj", "q_proj"]
    for stock in (SPEC, replace(spec, device="cuda")):
        assert "vllm.entrypoints.openai.api_server" in VLLM.command(stock)
