"""One answer, or one embedding, from a bundle that nobody has asked yet."""

import math
import queue
import time
from collections.abc import Sequence

import numpy as np

from maas.core.errors import EngineError
from maas.edge.runtime.engine.contract import Engine, Output, SamplingParams
from maas.edge.runtime.server.served import Served
from maas.protocol.devices import SpeedReport

_TEXT = "Hello, who are you?"
_NUM_ANSWER_TOKENS = 4
_NUM_PROMPT_TOKENS = 128
_NUM_NEW_TOKENS = 32
_STEP_TIMEOUT_S = 120.0


def probe(served: Served, max_model_len: int | None = None) -> None:
    """Have a bundle answer a short text, through its template and tokenizer.

    Args:
        served: The bundle.
        max_model_len: What it is said to read, where its engine has less room; none: what the
            engine has room for.

    Raises:
        EngineError: It does not, or what it answers is no number, or no chat has room in it.
        InvalidRequest: Its template refuses a plain message.
    """
    engine, tokenizer = served.engine, served.tokenizer
    if served.template.exists:
        text = served.template.render([{"role": "user", "content": _TEXT}], None)
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
    else:
        tokens = tokenizer.encode(_TEXT).ids
    if engine.info.task == "embed":
        _embed(engine, tokens)
        return
    most = engine.info.max_model_len if max_model_len is None else max_model_len
    if len(tokens) >= most:
        raise EngineError(
            f"its chat template makes {len(tokens)} tokens of a short message; "
            f"it reads {most} with the answer"
        )
    answer, _, _ = _generate(engine, tokens, _NUM_ANSWER_TOKENS)
    tokenizer.decode(answer)


def measure(served: Served) -> SpeedReport:
    """Return how fast it reads and writes, one request at a time.

    Raises:
        EngineError: It fails.
    """
    engine = served.engine
    num_prompt = max(1, min(_NUM_PROMPT_TOKENS, engine.info.max_model_len // 2))
    prompt = [(7919 * place) % engine.info.vocab_size for place in range(num_prompt)]
    if engine.info.task == "embed":
        started = time.perf_counter()
        _embed(engine, prompt)
        return SpeedReport(prefill_tok_s=num_prompt / (time.perf_counter() - started))
    answer, prefill_s, decode_s = _generate(engine, prompt, _NUM_NEW_TOKENS)
    num_steps = len(answer) - 1
    return SpeedReport(
        prefill_tok_s=num_prompt / prefill_s,
        decode_tok_s=num_steps / decode_s if num_steps and decode_s else None,
    )


def _embed(engine: Engine, tokens: Sequence[int]) -> None:
    vectors = engine.embed([tokens[: engine.info.max_model_len]])
    if not np.isfinite(vectors).all():
        raise EngineError("its embeddings are no numbers")


def _generate(
    engine: Engine, prompt: Sequence[int], num_new: int
) -> tuple[list[int], float, float]:
    """Return an answer, the seconds to its first token, and those from there to its last."""
    max_model_len = engine.info.max_model_len
    prompt = prompt[: max_model_len - 1]
    params = SamplingParams(
        max_tokens=min(num_new, max_model_len - len(prompt)),
        temperature=0.0,
        ignore_eos=True,
        num_logprobs=0,
    )
    outputs: queue.Queue[Output] = queue.Queue()
    started = first = time.perf_counter()
    engine.submit(prompt, params, outputs.put)
    answer: list[int] = []
    while True:
        try:
            output = outputs.get(timeout=_STEP_TIMEOUT_S)
        except queue.Empty as error:
            raise EngineError(f"it gave no token for {_STEP_TIMEOUT_S:.0f} s") from error
        if output.finish_reason in {"error", "cancelled"}:
            raise EngineError(output.error or "it was closed")
        if not all(math.isfinite(item.logprob) for item in output.logprobs or ()):
            raise EngineError("its logits are no numbers")
        first = first if answer else time.perf_counter()
        answer += output.token_ids
        if output.finish_reason is not None:
            return answer, first - started, time.perf_counter() - first
