"""An engine in a thread that answers the receipt's questions as vLLM does, by a torch model."""

import asyncio
import threading
from typing import Any

import torch
from aiohttp import web

from maas.finetune.data.rendering import Renderer


class Serving:
    """Answers.

    Args:
        model: What it says.
        renderer: How it renders chats.
        tells_logprobs: False: it does not know ``logprobs``.
        tells_tokens: False: completions take and give text only, as ``transformers serve``'s.
        breaks: Status of every answer, if not 200.
        is_nan: Its log-probabilities are no numbers.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        renderer: Renderer,
        *,
        tells_logprobs: bool = True,
        tells_tokens: bool = True,
        breaks: int = 200,
        is_nan: bool = False,
    ) -> None:
        self._model = model
        self._renderer = renderer
        self._tells_logprobs = tells_logprobs
        self._tells_tokens = tells_tokens
        self._breaks = breaks
        self._is_nan = is_nan
        self.asked: list[dict[str, Any]] = []

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        if self._breaks != 200:
            return web.json_response({"error": "broken"}, status=self._breaks)
        if request.path == "/tokenize":
            if not self._tells_tokens:
                return web.json_response({}, status=404)
            return web.json_response({"tokens": self._renderer.prompt_ids(body["messages"])})
        if request.path == "/v1/chat/completions":
            ids = self._greedy(self._renderer.prompt_ids(body["messages"]), body["max_tokens"])
            text = self._renderer.tokenizer.decode(ids, skip_special_tokens=True)
            return web.json_response({"choices": [{"message": {"content": text}}]})
        if not self._tells_tokens:
            return web.json_response({"error": "prompt: want a text"}, status=422)
        prompt = list(body["prompt"])
        tokens = self._greedy(prompt, body["max_tokens"])
        choice: dict[str, Any] = {"token_ids": tokens}
        if self._tells_logprobs:
            rows = self._logprobs(prompt, tokens, body["logprobs"])
            choice["logprobs"] = {"top_logprobs": rows}
        return web.json_response({"choices": [choice]})

    @torch.no_grad()
    def _logprobs(self, prompt: list[int], said: list[int], top: int) -> list[dict[str, float]]:
        seen = torch.tensor([[*prompt, *said]])
        logits = self._model(seen, logits_to_keep=len(said) + 1).logits[0, :-1]
        rows: list[dict[str, float]] = []
        for logprobs in torch.log_softmax(logits.float(), dim=-1):
            values, tokens = logprobs.topk(top)
            row = dict(zip(tokens.tolist(), values.tolist(), strict=True))
            if self._is_nan:
                row = dict.fromkeys(row, float("nan"))
            rows.append({f"token_id:{key}": value for key, value in row.items()})
        return rows

    @torch.no_grad()
    def _greedy(self, ids: list[int], count: int) -> list[int]:
        said: list[int] = []
        while len(said) < count:
            seen = torch.tensor([[*ids, *said]])
            said.append(int(self._model(seen, logits_to_keep=1).logits[0, -1].argmax()))
            if said[-1] == self._renderer.tokenizer.eos_token_id:
                break
        return said


class ServingEngine:
    """Runs it.

    Args:
        serving: What answers.
    """

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self._loop = asyncio.new_event_loop()
        self._runner = web.AppRunner(self._app())
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def _app(self) -> web.Application:
        app = web.Application()
        for path in ("/tokenize", "/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, self.serving.answer)
        return app

    async def _start(self) -> str:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
