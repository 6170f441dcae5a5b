"""What the fast path leaves behind."""

import gc
import weakref

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from maas.gateway.direct import CLIENT, DirectClient, direct_client


class _Transport:
    def write(self, data: bytes) -> None: ...


class _Cycle:
    """What a client needs of uvicorn's cycle, which holds its request's scope."""

    def __init__(self) -> None:
        self.transport = _Transport()
        self.scope = {CLIENT: DirectClient(self)}

    async def send(self, message) -> None: ...


def test_a_request_leaves_nothing_for_the_collector():
    assert "scope" in RequestResponseCycle.__init__.__annotations__
    cycle = _Cycle()
    gone = weakref.ref(cycle)
    gc.disable()
    try:
        client = direct_client(cycle.scope, cycle.send)
        assert client is not None
        del cycle, client
        assert gone() is None
    finally:
        gc.enable()


def test_an_app_in_between_sees_the_bytes():
    async def other(message) -> None: ...

    assert direct_client(_Cycle().scope, other) is None
