"""What control-plane routes depend on: who is asking, and what there is."""

from typing import Annotated

from fastapi import Depends, Request

from maas.gateway.relay.app import Relay
from maas.gateway.relay.http import request_id_of
from maas.gateway.relay.snapshot import Snapshot, SnapshotReader
from maas.gateway.relay.upstream import Caller


def _caller(request: Request) -> Caller:
    relay: Relay = request.app.state.relay
    return relay.authenticate(request.scope, request_id_of(request.scope))


def _snapshot(request: Request) -> Snapshot:
    snapshots: SnapshotReader = request.app.state.snapshots
    return snapshots.current


CallerDep = Annotated[Caller, Depends(_caller)]
SnapshotDep = Annotated[Snapshot, Depends(_snapshot)]
