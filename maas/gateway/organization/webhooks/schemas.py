"""Webhooks on the wire; ours, as OpenAI has them in its console only."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from maas.gateway.organization.wire import Body, Name
from maas.store.webhooks import EVENTS, Webhook


class WebhookBody(Body):
    """A new webhook."""

    name: Name
    url: Annotated[str, Field(max_length=2048)]
    events: Annotated[list[str], Field(default_factory=lambda: list(EVENTS))]


class WebhookObject(BaseModel):
    """A webhook; ``secret`` only in the answer that made it."""

    object: Literal["organization.webhook"] = "organization.webhook"
    id: str
    name: str
    url: str
    events: list[str]
    created_at: int
    secret: str | None = None


def shown(webhook: Webhook, secret: str | None = None) -> WebhookObject:
    """Return a webhook as it is shown."""
    return WebhookObject(
        id=webhook.id,
        name=webhook.name,
        url=webhook.url,
        events=list(webhook.events),
        created_at=int(webhook.created_at),
        secret=secret,
    )
