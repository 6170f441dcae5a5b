"""``/v1/queued_requests``: what waits for the cloud, and what came back."""

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from maas.core.errors import NotFound
from maas.edge.runtime.server.offline import OfflineQueue, QueuedAnswer, QueuedRequest, Status


def add_queue_routes(app: web.Application, queue: OfflineQueue) -> None:
    """Add the routes to an application."""

    async def listed(_: web.Request) -> web.Response:
        return _json(await asyncio.to_thread(_page, queue))

    async def shown(request: web.Request) -> web.Response:
        found = await asyncio.to_thread(queue.get, request.match_info["id"])
        return _json(queued_object(*found))

    async def deleted(request: web.Request) -> web.Response:
        request_id = request.match_info["id"]
        await asyncio.to_thread(queue.delete, request_id)
        return _json({"id": request_id, "object": "queued_request", "deleted": True})

    app.router.add_get("/v1/queued_requests", listed)
    app.router.add_get("/v1/queued_requests/{id}", shown)
    app.router.add_delete("/v1/queued_requests/{id}", deleted)


def queued_object(
    request: QueuedRequest, status: Status, answer: QueuedAnswer | None
) -> dict[str, Any]:
    """Return a queued request as the API writes it; ``response`` as in the lines of a batch."""
    response = None
    if answer is not None:
        response = {
            "status_code": answer.status_code,
            "request_id": answer.request_id,
            "body": _body_of(answer),
        }
    return {
        "id": request.id,
        "object": "queued_request",
        "status": status,
        "endpoint": request.path,
        "reason": request.reason,
        "created_at": request.created_at,
        "finished_at": answer.finished_at if answer else None,
        "response": response,
    }


def _page(queue: OfflineQueue) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for request_id in queue.ids():
        try:
            request, status, _ = queue.get(request_id)
        except NotFound:
            # Deleted meanwhile.
            continue
        item = queued_object(request, status, None)
        # Answers can be long: one by one.
        del item["response"], item["finished_at"]
        data.append(item)
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def _body_of(answer: QueuedAnswer) -> Any:
    try:
        return msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return answer.body.decode(errors="replace")


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
