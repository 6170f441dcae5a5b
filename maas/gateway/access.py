"""What control-plane routes depend on: who is asking, and what there is."""

from typing import Annotated

from fastapi import Depends, Request

from maas.gateway.relay.app import Relay
from maas.gateway.relay.key_access import KeyAccess
from maas.gateway.relay.snapshot import Snapshot, SnapshotReader


def _caller(request: Request) -> KeyAccess:
    relay: Relay = request.app.state.relay
    return relay.identify(request.scope)


def _snapshot(request: Request) -> Snapshot:
    snapshots: SnapshotReader = request.app.state.snapshots
    return snapshots.current


CallerDep = Annotated[KeyAccess, Depends(_caller)]
SnapshotDep = Annotated[Snapshot, Depends(_snapshot)]
