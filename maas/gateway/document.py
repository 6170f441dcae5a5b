"""``/openapi.json``: FastAPI's document, and in it the routes that FastAPI does not see."""

from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI

from maas.protocol.chat import ChatCompletionRequest
from maas.protocol.completions import CompletionRequest
from maas.protocol.devices import EnrolRequest, HeartbeatRequest
from maas.protocol.embeddings import EmbeddingRequest
from maas.protocol.responses import ResponsesRequest
from maas.store.device_keys import ENROL_PATH, HEARTBEAT_PATH

RELAYED = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/responses": ResponsesRequest,
}
# What devices use themselves.
DEVICE_ROUTES = {ENROL_PATH: EnrolRequest, HEARTBEAT_PATH: HeartbeatRequest}


def document_of(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Return ``app.openapi`` with the relayed routes in it."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = plain()
        template = "#/components/schemas/{name}"
        routes = {**RELAYED, **DEVICE_ROUTES}
        types = list(routes.values())
        schemas, components = msgspec.json.schema_components(types, ref_template=template)
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        for (path, kind), schema in zip(routes.items(), schemas, strict=True):
            document["paths"][path] = {
                "post": {
                    "tags": ["inference" if path in RELAYED else "devices"],
                    "summary": (kind.__doc__ or "").splitlines()[0],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": schema}},
                    },
                    "responses": {
                        "200": {
                            "description": "As OpenAI defines it, JSON or SSE"
                            if path in RELAYED
                            else "See docs/fleet.md"
                        }
                    },
                    # The code is what lets a device enrol.
                    "security": [] if path == ENROL_PATH else [{"bearer": []}],
                }
            }
        document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
        return document

    return openapi
