"""What is said of a body whose shape is wrong: always with the field's name."""

from collections.abc import Sequence

import msgspec

from maas.core import errors

MAX_CHOICES = 128


def invalid(
    error: msgspec.ValidationError, forbidden: frozenset[str] = frozenset()
) -> errors.InvalidRequest:
    """Return the refusal for a body of the wrong shape, naming the field."""
    text, _, path = str(error).partition(" - at `")
    where = path.rstrip("`").removeprefix("$").lstrip(".")
    if text.startswith("Object contains unknown field `"):
        field = text.removeprefix("Object contains unknown field `").rstrip("`")
        param = f"{where}.{field}" if where else field
        if field in forbidden:
            return errors.ForbiddenField(
                f"{param!r} reaches past this API into the engine and is refused", param=param
            )
        return errors.UnknownField(f"unknown field {param!r}", param=param)
    if text.startswith("Object missing required field `"):
        field = text.removeprefix("Object missing required field `").rstrip("`")
        param = f"{where}.{field}" if where else field
        return errors.InvalidRequest(f"field {param!r} is required", param=param)
    shown = where or "the body"
    return errors.InvalidRequest(f"{shown}: {text[0].lower()}{text[1:]}", param=where or None)


def check_choices(prompt: str | Sequence[object], n: int | None) -> None:
    """Bound the answers of one completion request: each of its prompts has ``n``.

    Raises:
        InvalidRequest: They are too many; the message names the field.
    """
    is_one = isinstance(prompt, str) or all(isinstance(item, int) for item in prompt)
    num_prompts = 1 if is_one else len(prompt)
    if num_prompts > MAX_CHOICES:
        raise errors.InvalidRequest(
            f"prompt: {num_prompts} prompts in one request, at most {MAX_CHOICES}", param="prompt"
        )
    if num_prompts * (n or 1) > MAX_CHOICES:
        raise errors.InvalidRequest(
            f"n: {num_prompts} prompts with {n} answers each, at most {MAX_CHOICES} together",
            param="n",
        )
