"""The prompt that vLLM makes of a request, without an engine: JSON in, JSON out."""

import json
import sys
from typing import Any

from transformers import AutoTokenizer
from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import resolve_chat_template_content_format, safe_apply_chat_template


def vllm_prompt(folder: str, messages: list[Any], tools: list[Any] | None) -> str:
    """Return the text that vLLM gives to the tokenizer."""
    config = ModelConfig(model=folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    request = ChatCompletionRequest.model_validate({"messages": messages, "tools": tools})
    tool_dicts: list[Any] | None = (
        [tool.model_dump() for tool in request.tools] if request.tools else None
    )
    content_format = resolve_chat_template_content_format(
        None, tool_dicts, "auto", tokenizer, model_config=config
    )
    conversation, _, _ = parse_chat_messages(request.messages, config, content_format)
    return safe_apply_chat_template(
        config,
        tokenizer,
        conversation,
        tools=tool_dicts,
        chat_template=None,
        tokenize=False,
        add_generation_prompt=True,
    )


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps([vllm_prompt(*asked) for asked in json.load(sys.stdin)]))
