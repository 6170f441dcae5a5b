"""Make, list and remove webhooks."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from maas.gateway.authority import Authority, in_organization
from maas.gateway.organization.pages import ListPage, page_of
from maas.gateway.organization.webhooks.schemas import WebhookBody, WebhookObject, shown
from maas.gateway.organization.wire import Deleted
from maas.store.roles import Permission
from maas.store.webhooks import WebhookRepository

router = APIRouter(prefix="/v1/organization/webhooks", tags=["organization"])


def _webhooks(request: Request) -> WebhookRepository:
    return request.app.state.webhooks


_WebhooksDep = Annotated[WebhookRepository, Depends(_webhooks)]
_Reader = Annotated[Authority, Depends(in_organization(Permission.USAGE))]
_Owner = Annotated[Authority, Depends(in_organization(Permission.LIMITS))]


@router.get("")
def list_webhooks(who: _Reader, webhooks: _WebhooksDep) -> ListPage[WebhookObject]:
    """List the organisation's webhooks."""
    found = [shown(webhook) for webhook in webhooks.list(who.organization_id)]
    return page_of(found, has_more=False)


@router.post("")
def create_webhook(body: WebhookBody, who: _Owner, webhooks: _WebhooksDep) -> WebhookObject:
    """Make a webhook; its secret is shown this once."""
    webhook, secret = webhooks.create(
        who.organization_id, name=body.name, url=body.url, events=tuple(body.events)
    )
    return shown(webhook, secret)


@router.delete("/{webhook_id}")
def delete_webhook(webhook_id: str, who: _Owner, webhooks: _WebhooksDep) -> Deleted:
    """Remove a webhook."""
    webhooks.delete(who.organization_id, webhook_id)
    return Deleted(object="organization.webhook.deleted", id=webhook_id)
