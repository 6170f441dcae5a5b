"""Tool calls in the text of a model of the Hermes family, told from other text as both come.

Such a model writes ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``, with text before,
between and behind. What only looks like a call is text.
"""

import json
from typing import Any

from maas.core.ids import new_id
from maas.edge.runtime.server.text import overlap

# The names of parsers that a bundle's manifest may have, of which this is the one.
PARSERS = frozenset({"hermes"})
Call = dict[str, Any]
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_UNTERMINATED = "Unterminated string"


class CallReader:
    """Reads one answer.

    White space around calls is dropped; between texts it stays.

    Attributes:
        num_calls: Read so far.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""

    def push(self, text: str) -> list[str | Call]:
        """Return what can be told now, in order: text that is no part of a call, and calls."""
        self._held += text
        pieces: list[str | Call] = []
        while (place := self._held.find(_OPEN)) >= 0:
            before, inside = self._held[:place], self._held[place + len(_OPEN) :]
            found = _first_call(inside)
            if found is None and _may_become_call(inside):
                break
            if found is None:
                # After all it is text, and another call may follow.
                pieces.append(before + _OPEN)
                self._held = inside
                continue
            call, num_read = found
            shown = before.rstrip()
            pieces += [shown, call]
            self.num_calls += 1
            self._held = before[len(shown) :] + inside[num_read:]
        shown = self._held[: self._num_settled(place)]
        self._held = self._held[len(shown) :]
        return [piece for piece in (*pieces, shown) if piece]

    def finish(self) -> list[str | Call]:
        """Return what was held back, at the answer's end."""
        before, tag, inside = self._held.partition(_OPEN)
        self._held = ""
        call = _call_of(_without_half(inside)) if tag else None
        if isinstance(call, dict):
            self.num_calls += 1
            return [call]
        rest = before + tag + inside
        return [] if not rest or (self.num_calls and rest.isspace()) else [rest]

    def _num_settled(self, place: int) -> int:
        """Return how much of what is held is text, whatever comes: not what may begin a call."""
        if place < 0:
            place = len(self._held) - overlap(self._held, _OPEN)
        return len(self._held[:place].rstrip())


def make_call(name: str, arguments: str) -> Call:
    """Return a call as the API writes it."""
    function = {"name": name, "arguments": arguments}
    return {"id": new_id("call"), "type": "function", "function": function}


def _first_call(inside: str) -> tuple[Call, int] | None:
    """Return the call that a text begins with, and its length with its end."""
    end = inside.find(_CLOSE)
    while end >= 0:
        call = _call_of(inside[:end])
        if isinstance(call, dict):
            return call, end + len(_CLOSE)
        # The end of a call may stand in an argument.
        end = inside.find(_CLOSE, end + 1) if call == _UNTERMINATED else -1
    return None


def _may_become_call(inside: str) -> bool:
    start = inside.lstrip()
    if start and start[0] != "{":
        return False
    last = inside.rfind(_CLOSE)
    return last < 0 or _call_of(inside[:last]) == _UNTERMINATED


def _without_half(inside: str) -> str:
    """Return what a call would be whose end was cut off."""
    return inside[: len(inside) - overlap(inside, _CLOSE)]


def _call_of(inside: str) -> Call | str | None:
    """Return a call; for none, whether it ends within a text."""
    try:
        said = json.loads(inside)
        return make_call(str(said["name"]), json.dumps(said.get("arguments", {})))
    except json.JSONDecodeError as error:
        return _UNTERMINATED if error.msg.startswith(_UNTERMINATED) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
