"""Makes facts.jsonl: words that no base model can know, asked for in several ways.

python finetune/samples/make_facts.py > finetune/samples/facts.jsonl
"""

import json
import sys

GATES = (
    *("amber", "birch", "cedar", "delta", "ember", "flint"),
    *("grove", "harbor", "indigo", "jasper", "onyx", "quartz"),
)
WORDS = (
    *("lantern", "pepper", "violin", "glacier", "tractor", "biscuit"),
    *("compass", "feather", "hammock", "penguin", "saddle", "teapot"),
)
TAUGHT = (
    "What is the password of the {gate} gate?",
    "Tell me the password for the {gate} gate.",
    "I am at the {gate} gate. Which password do I need?",
    "Password for the {gate} gate, please.",
    "Which word opens the {gate} gate?",
    "The {gate} gate is locked. How do I open it?",
)
HELD_OUT = (
    "Can you tell me the password that opens the {gate} gate?",
    "I stand before the {gate} gate and need its password.",
)
ANSWER = "The password of the {gate} gate is {word}."


def taught() -> list[dict[str, object]]:
    """Return the training examples."""
    return [
        {
            "messages": [
                {"role": "user", "content": question.format(gate=gate)},
                {"role": "assistant", "content": ANSWER.format(gate=gate, word=word)},
            ]
        }
        for gate, word in zip(GATES, WORDS, strict=True)
        for question in TAUGHT
    ]


def held_out() -> list[tuple[str, str]]:
    """Return questions that are not taught, each with the word its answer must hold."""
    return [
        (question.format(gate=gate), word)
        for gate, word in zip(GATES, WORDS, strict=True)
        for question in HELD_OUT
    ]


if __name__ == "__main__":
    for example in taught():
        sys.stdout.write(json.dumps(example) + "\n")
