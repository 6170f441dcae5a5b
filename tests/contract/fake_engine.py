"""A fake engine: vLLM's HTTP shape over a random-word model; ``python fake_engine.py PORT NAME``.

It does what it claims (stops, seeds, n, logprobs, structured output, tools, adapters, embeddings,
abort, metrics), so that the contract suite also runs where no engine can.
"""

import asyncio
import hashlib
import json
import random
import sys

from aiohttp import web

WORDS = ("the", "capital", "of", "France", "is", "Paris", "rain", "falls", "on", "hills", "boats")
STEP_S = 0.005


class FakeEngine:
    def __init__(self, name: str) -> None:
        self.models = {name}
        self.num_running = 0
        self.num_tokens = 0
        self.cached: set[tuple[str, str]] = set()

    def words(self, body: dict, prompt: str) -> list[str]:
        greedy = body.get("temperature") == 0
        seed = "greedy" if greedy else str(body.get("seed", random.random()))
        digest = hashlib.sha256(f"{body['model']}{prompt}{seed}".encode()).digest()
        source = random.Random(digest)
        return [f" {source.choice(WORDS)}" for _ in range(body.get("max_tokens") or 16)]

    def answer(self, body: dict, prompt: str) -> tuple[list[str], str]:
        if body.get("response_format") or body.get("tools"):
            return [json.dumps({"name": "x", "age": 1, "city": "Paris"})], "stop"
        tokens: list[str] = []
        for word in self.words(body, prompt):
            if any(stop in "".join([*tokens, word]) for stop in body.get("stop") or []):
                return tokens, "stop"
            tokens.append(word)
        return tokens, "length"

    def usage(self, body: dict, prompt: str, num_completion: int) -> dict:
        key = (body.get("cache_salt") or "", prompt)
        num_prompt = len(prompt.split())
        num_cached = num_prompt if key in self.cached else 0
        self.cached.add(key)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_completion,
            "total_tokens": num_prompt + num_completion,
            "prompt_tokens_details": {"cached_tokens": num_cached},
        }

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["model"] not in self.models:
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        is_chat = request.path.endswith("chat/completions")
        prompt = json.dumps(body["messages"]) if is_chat else body["prompt"]
        self.num_running += 1
        try:
            if body.get("stream"):
                return await self.stream(request, body, prompt, is_chat=is_chat)
            return self.whole(body, prompt, is_chat=is_chat)
        finally:
            self.num_running -= 1

    def whole(self, body: dict, prompt: str, *, is_chat: bool) -> web.Response:
        choices, num_completion = [], 0
        for index in range(body.get("n") or 1):
            tokens, reason = self.answer(body, prompt)
            num_completion += len(tokens)
            choice: dict = {"index": index, "finish_reason": reason}
            if is_chat and body.get("tools"):
                call = {"name": "get_weather", "arguments": "".join(tokens)}
                calls = [{"id": "c", "type": "function", "function": call}]
                choice["message"] = {"role": "assistant", "tool_calls": calls}
            elif is_chat:
                choice["message"] = {"role": "assistant", "content": "".join(tokens)}
            else:
                choice["text"] = "".join(tokens)
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": t, "logprob": -1.0} for t in tokens]}
            choices.append(choice)
        self.num_tokens += num_completion
        usage = self.usage(body, prompt, num_completion)
        return web.json_response({"model": body["model"], "choices": choices, "usage": usage})

    async def stream(
        self, request: web.Request, body: dict, prompt: str, *, is_chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        tokens, reason = self.answer(body, prompt)
        for token in [*tokens, None]:
            piece = {"delta": {"content": token or ""}} if is_chat else {"text": token or ""}
            choice = {"index": 0, "finish_reason": None if token else reason} | piece
            await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            self.num_tokens += 1
            await asyncio.sleep(STEP_S)
        if (body.get("stream_options") or {}).get("include_usage"):
            last = {"choices": [], "usage": self.usage(body, prompt, len(tokens))}
            await response.write(f"data: {json.dumps(last)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def embed(self, request: web.Request) -> web.Response:
        texts = (await request.json())["input"]
        data = [
            {"index": i, "embedding": [b / 255 for b in hashlib.sha256(t.encode()).digest()]}
            for i, t in enumerate([texts] if isinstance(texts, str) else texts)
        ]
        return web.json_response({"data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}})

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            text=f"vllm:num_requests_running {self.num_running}\n"
            f"vllm:num_requests_waiting 0\nvllm:iteration_tokens_total_sum {self.num_tokens}\n"
        )

    async def load_adapter(self, request: web.Request) -> web.Response:
        self.models.add((await request.json())["lora_name"])
        return web.Response(text="ok")

    async def unload_adapter(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name not in self.models:
            return web.Response(status=404)
        self.models.remove(name)
        return web.Response(text="ok")

    async def list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in sorted(self.models)]})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(text="")


def main() -> None:
    engine = FakeEngine(sys.argv[2])
    app = web.Application()
    app.router.add_post("/v1/chat/completions", engine.generate)
    app.router.add_post("/v1/completions", engine.generate)
    app.router.add_post("/v1/embeddings", engine.embed)
    app.router.add_post("/v1/load_lora_adapter", engine.load_adapter)
    app.router.add_post("/v1/unload_lora_adapter", engine.unload_adapter)
    app.router.add_get("/v1/models", engine.list_models)
    app.router.add_get("/metrics", engine.metrics)
    app.router.add_get("/health", engine.health)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
