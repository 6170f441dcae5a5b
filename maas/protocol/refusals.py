"""What is said of a body whose shape is wrong: always with the field's name."""

import msgspec

from maas.core import errors


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
