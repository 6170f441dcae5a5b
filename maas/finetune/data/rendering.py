"""Turns an example into tokens as serving does, and says which of them are to be learned.

Serving renders a chat with ``apply_chat_template`` of the tokenizer beside the weights; so does
this. What is learned is what the model would have to say itself: the text that an assistant's
turn adds after the generation prompt, with the end of its turn. A template that says so itself
(``{% generation %}``) is not needed: the chat is rendered up to each assistant turn and with it,
and the difference is the turn. Where a template renders earlier turns differently once more
follow (some drop old reasoning), the chat becomes one example for each assistant turn, each
rendered as it would be asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from maas.core.errors import DataRefused
from maas.finetune.data.serving_shape import Message, ServingShape


@dataclass(frozen=True)
class TokenisedExample:
    """An example as the model sees it.

    Attributes:
        input_ids: All tokens.
        is_target: For each, whether it is learned.
    """

    input_ids: list[int]
    is_target: list[bool]

    @property
    def num_targets(self) -> int:
        """How many tokens are learned."""
        return sum(self.is_target)


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one chat."""

    chosen: TokenisedExample
    rejected: TokenisedExample


class Renderer:
    """Renders chats and text for one model.

    Args:
        model_dir: Folder with the tokenizer and its chat template.

    Attributes:
        marks: The tokenizer's control tokens, as they are written.
    """

    def __init__(self, model_dir: Path) -> None:
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(model_dir), local_files_only=True, trust_remote_code=False
        )
        self._shapes: dict[str | None, ServingShape] = {}
        # The end of a turn need not be among the tokenizer's named special tokens (Gemma).
        added = self._tokenizer.added_tokens_decoder.values()
        self.marks = tuple(
            {*self._tokenizer.all_special_tokens, *(t.content for t in added if t.special)}
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return self._tokenizer.chat_template is not None

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text that is no chat."""
        return self._encode(text)[0]

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return the text that a chat becomes."""
        shape = self._shape(bool(tools))
        return str(
            self._tokenizer.apply_chat_template(
                shape.messages(messages),
                tools=shape.tools(tools),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )

    def _shape(self, has_tools: bool) -> ServingShape:
        """Return what the template wants; a tokenizer may have one of its own for tools."""
        try:
            template = self._tokenizer.get_chat_template(tools=[{}] if has_tools else None)
        except ValueError:
            template = None
        if template not in self._shapes:
            self._shapes[template] = ServingShape(template)
        return self._shapes[template]

    def num_tokens_over(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        most: int,
    ) -> int:
        """Return how many tokens a chat has if it has more than that, and 0 if not.

        Before ``render``: that takes a chat of many turns apart turn by turn, which for one that
        is much too long takes minutes.

        Raises:
            DataRefused: The template cannot render it.
        """
        text = self._checked_text(messages, tools)
        if len(text) <= most:
            return 0
        num_tokens = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return num_tokens if num_tokens > most else 0

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Return the tokens that serving sends to the model to answer a chat."""
        return self._encode(self.text(messages, tools, add_generation_prompt=True))[0]

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[TokenisedExample]:
        """Return what a chat teaches: one example, or one for each assistant turn.

        Args:
            messages: In OpenAI's shape; an assistant turn of ``weight`` 0 is not learned.
            tools: In OpenAI's shape.

        Raises:
            DataRefused: The template cannot render it; the message says why.
        """
        turns = [
            index
            for index, message in enumerate(messages)
            if message.get("role") == "assistant" and message.get("weight") != 0
        ]
        whole = self._checked_text(messages, tools)
        spans = [self._span(messages, tools, index, whole) for index in turns]
        if all(span is not None for span in spans):
            return [self._tokenise(whole, [span for span in spans if span is not None])]
        examples: list[TokenisedExample] = []
        for index in turns:
            part = self._checked_text(messages[: index + 1], tools)
            span = self._span(messages, tools, index, part)
            if span is None:
                raise DataRefused(
                    f"messages[{index}]: the chat template does not begin this turn as it begins "
                    "an answer, so it cannot be learned; see docs/finetuning-data.md"
                )
            examples.append(self._tokenise(part, [span]))
        return examples

    def render_pair(self, record: Mapping[str, Any]) -> PreferencePair:
        """Return both answers of a preference record in OpenAI's shape."""
        # What comes before is given, its answers too.
        prompt = [message | {"weight": 0} for message in record["input"]["messages"]]
        tools = record["input"].get("tools")
        answers = (record["preferred_output"], record["non_preferred_output"])
        chosen, rejected = (self._answer(prompt, answer, tools) for answer in answers)
        return PreferencePair(chosen, rejected)

    def _answer(
        self,
        prompt: Sequence[Message],
        answer: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> TokenisedExample:
        *before, last = answer
        given = [*prompt, *({**message, "weight": 0} for message in before)]
        return self.render([*given, {**last, "weight": 1}], tools)[-1]

    def render_text(self, text: str, *, max_length: int) -> Iterator[TokenisedExample]:
        """Yield a text in pieces; every token but the first of each is learned."""
        ids = self._encode(text)[0]
        end = self._tokenizer.eos_token_id
        if isinstance(end, int):
            ids.append(end)
        for start in range(0, len(ids), max_length):
            piece = ids[start : start + max_length]
            if len(piece) > 1:
                yield TokenisedExample(piece, [False] + [True] * (len(piece) - 1))

    def _span(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        index: int,
        whole: str,
    ) -> tuple[int, int] | None:
        """Return where an assistant turn is in a rendered chat; none if it differs there."""
        before = self._checked_text(messages[:index], tools, add_generation_prompt=True)
        until = self._checked_text(messages[: index + 1], tools)
        if not until.startswith(before) or not whole.startswith(until):
            return None
        # After the end of the turn a template may put a line break, which no model says.
        spoken = until.rstrip()
        is_ended = spoken.endswith(self.marks)
        _check_calls(messages[index], index, until[len(before) :])
        return len(before), len(spoken) if is_ended else len(until)

    def _checked_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        try:
            return self.text(messages, tools, add_generation_prompt=add_generation_prompt)
        except Exception as error:
            raise DataRefused(f"the chat template refuses it: {str(error)[:300]}") from error

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        # The template writes the special tokens itself.
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]

    def _tokenise(self, text: str, spans: Sequence[tuple[int, int]]) -> TokenisedExample:
        ids, offsets = self._encode(text)
        is_target = [
            start < end and any(low <= start and end <= high for low, high in spans)
            for start, end in offsets
        ]
        return TokenisedExample(ids, is_target)


def _check_calls(message: Message, index: int, said: str) -> None:
    """Refuse a turn whose calls a template leaves out: it would teach to say nothing.

    Raises:
        DataRefused: A call's name is not in what the turn became.
    """
    for call in message.get("tool_calls") or ():
        if call["function"]["name"] not in said:
            raise DataRefused(
                f"messages[{index}]: this model's chat template leaves out tool calls, so none "
                "can be learned; take a model whose template has them"
            )
