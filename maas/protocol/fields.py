"""Fields that engines know and the API refuses: each reaches past the API into the engine.

A chat template runs code and replaces the operator's prompt format, a cache salt opens another
tenant's prefix cache, paths and processors load files, priorities jump the queue.
"""

FORBIDDEN_FIELDS = frozenset(
    {
        "add_generation_prompt",
        "add_special_tokens",
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "documents",
        "echo",
        "engine_args",
        "extra_args",
        "extra_body",
        "extra_headers",
        "guided_choice",
        "guided_decoding_backend",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "guided_whitespace_pattern",
        "include_stop_str_in_output",
        "kv_transfer_params",
        "logits_processors",
        "lora_name",
        "lora_path",
        "lora_request",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "priority",
        "prompt_embeds",
        "prompt_logprobs",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "structural_tag",
        "structured_outputs",
        "truncate_prompt_tokens",
        "use_beam_search",
        "vllm_xargs",
    }
)
