"""Short chats of mixed lengths for the speed comparison: seeded, so every side gets the same."""

import json
import random
from pathlib import Path

_SUBJECTS = ("The lighthouse", "A river ferry", "The night train", "Our workshop", "The archive")
_VERBS = ("keeps", "repairs", "records", "crosses", "measures", "forgets")
_OBJECTS = ("the old signal", "every delivery", "a narrow bridge", "the winter tide", "two engines")
_ENDINGS = ("before dawn", "for the harbour office", "without being asked", "when it rains")
# Words of an answer: short ones, a few long ones, as support chats have them.
_SENTENCES = (1, 1, 2, 2, 3, 4, 6, 10, 16)


def _sentence(random_: random.Random) -> str:
    parts = (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS)
    return " ".join(random_.choice(part) for part in parts) + "."


def _text(random_: random.Random) -> str:
    return " ".join(_sentence(random_) for _ in range(random_.choice(_SENTENCES)))


def write_chats(file: Path, *, num_chats: int, seed: int) -> None:
    """Write ``num_chats`` conversations of one turn in OpenAI's shape."""
    random_ = random.Random(seed)  # noqa: S311 - sample data, no secret
    with file.open("w", encoding="utf-8") as out:
        for number in range(num_chats):
            messages = [
                {"role": "user", "content": f"Report {number}: {_sentence(random_)} Go on."},
                {"role": "assistant", "content": _text(random_)},
            ]
            out.write(json.dumps({"messages": messages}) + "\n")
