"""vLLM's own OpenAI server with our way of applying adapters on processors.

``python -m maas.engines.vllm_server ARGUMENTS`` is what ``python -m
vllm.entrypoints.openai.api_server ARGUMENTS`` is, but for the class that the platform names for
LoRA. The top of this module runs again in the processes that vLLM spawns.
"""

import runpy

from vllm.platforms.cpu import CpuPlatform


def _grouped_lora(_cls: type[CpuPlatform]) -> str:
    return "maas.engines.vllm_lora_cpu.GroupedLora"


CpuPlatform.get_punica_wrapper = classmethod(_grouped_lora)  # type: ignore[assignment]

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
