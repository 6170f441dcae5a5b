"""In front of the route that takes adapters: gigabytes are checked before anybody waits for it.

Changes of the control plane go one at a time, some in a transaction of the store: none of that
waits while files are fetched, hashed and stored. The route is then told what was found: an
adapter to name, or why there is none.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from maas.core.errors import Conflict, MaasError
from maas.core.settings import GatewaySettings
from maas.gateway.adapters.schemas import AdapterBody
from maas.gateway.adapters.service import BroughtAdapters
from maas.gateway.authority import check_may_tune
from maas.gateway.errors import send_error
from maas.gateway.files.received import receive_of
from maas.gateway.relay.app import Relay
from maas.gateway.relay.http import read_body, request_id_of
from maas.gateway.relay.key_access import KeyAccess
from maas.store.adapters import Adapter

ADAPTERS_PATH = "/v1/adapters"
_STATE_KEY = "maas.adapter"
_NUM_TAKERS = 2


class AdapterDoor:
    """Takes adapters in, then asks the control plane.

    Args:
        app: The control plane.
        relay: Knows keys.
        brought: Checks and stores them.
        settings: Limits of a body.
    """

    def __init__(
        self, app: ASGIApp, *, relay: Relay, brought: BroughtAdapters, settings: GatewaySettings
    ) -> None:
        self._app = app
        self._relay = relay
        self._brought = brought
        self._settings = settings
        # Of its own: large files must not hold the threads that others need.
        self._takers = ThreadPoolExecutor(_NUM_TAKERS, thread_name_prefix="adapters")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            access = self._relay.identify(scope)
            check_may_tune(access)
            body = await read_body(
                scope,
                receive,
                max_bytes=self._settings.max_body_bytes,
                timeout_s=self._settings.body_timeout_s,
            )
        except MaasError as error:
            await send_error(send, error, request_id_of(scope))
            return
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._takers, self._take, access, body)
        state = {**scope.get("state", {}), _STATE_KEY: found}
        await self._app({**scope, "state": state}, receive_of(body), send)

    def _take(self, access: KeyAccess, body: bytes) -> Adapter | MaasError | None:
        """Return the adapter, or why there is none: a repeated request may have an answer."""
        try:
            return self._brought.take(access, AdapterBody.model_validate_json(body))
        except ValidationError:
            return None
        except MaasError as error:
            return error


def taken_of(scope: Scope) -> Adapter:
    """Return the adapter that was taken for a request.

    Raises:
        MaasError: There is none; the error says why.
    """
    found = scope.get("state", {}).get(_STATE_KEY)
    if isinstance(found, MaasError):
        raise found
    if not isinstance(found, Adapter):
        raise Conflict("the body cannot be read twice the same; try again")
    return found
