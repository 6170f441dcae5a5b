"""Grammars in the form the engine takes: llguidance's top-level grammar as JSON."""

import json
from typing import Any

from maas.protocol.chat import ResponseFormat

# Spaces between a JSON text's parts, but no run of them: small models never stop.
_JSON_OPTIONS = {"whitespace_flexible": False}


def json_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of JSON that follows a schema."""
    return json.dumps({"grammars": [{"json_schema": {**schema, "x-guidance": _JSON_OPTIONS}}]})


def response_grammar(wanted: ResponseFormat | None) -> str | None:
    """Return the grammar of a response format; none where it asks for nothing."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object" or wanted.json_schema is None:
        return json_grammar({"type": "object"})
    return json_grammar(wanted.json_schema.schema or {"type": "object"})
