"""``/v1/responses``: OpenAI's Responses API, translated onto chat completions."""
