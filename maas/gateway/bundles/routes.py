"""List, read and delete bundles; a device reads their bytes in ranges."""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from maas.core.errors import NotFound
from maas.edge.runtime.bundle.signing import key_id_of
from maas.gateway.authority import ProjectAuthority, in_own_project
from maas.gateway.exports.routes import newest_first
from maas.gateway.organization.pages import ListPage, page_of
from maas.store.blobs import Blobs
from maas.store.bundles import Bundle, BundleRepository
from maas.store.devices import DeviceRepository
from maas.store.pages import Window
from maas.store.roles import Permission
from maas.store.signing_keys import SigningKeyRepository

router = APIRouter(prefix="/v1/bundles", tags=["edge"])

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_Who = Annotated[ProjectAuthority, Depends(in_own_project(Permission.JOBS))]
_Reader = Annotated[
    ProjectAuthority, Depends(in_own_project(Permission.JOBS, or_else=Permission.READ))
]
_Downloader = Annotated[
    ProjectAuthority,
    Depends(
        in_own_project(Permission.JOBS, or_else=frozenset({Permission.READ, Permission.DEVICE}))
    ),
]


class BundleObject(BaseModel):
    """A bundle; ``manifest`` is its ``bundle.json``."""

    object: Literal["bundle"] = "bundle"
    id: str
    created_at: int
    name: str
    model: str
    bytes: int
    manifest: Mapping[str, Any]


class SigningKeyObject(BaseModel):
    """The public half of the key that signs bundles, in hexadecimal; ``id`` is its short name."""

    object: Literal["bundle.signing_key"] = "bundle.signing_key"
    id: str
    public_key: str


class BundleDeleted(BaseModel):
    """That a bundle is gone."""

    object: Literal["bundle"] = "bundle"
    id: str
    deleted: Literal[True] = True


def _bundles(request: Request) -> BundleRepository:
    return request.app.state.bundles


def _blobs(request: Request) -> Blobs:
    return request.app.state.blobs


def _devices(request: Request) -> DeviceRepository:
    return request.app.state.fleet.fleet.devices


def _signing_keys(request: Request) -> SigningKeyRepository:
    return request.app.state.fleet.fleet.signing_keys


_SigningKeys = Annotated[SigningKeyRepository, Depends(_signing_keys)]
_Devices = Annotated[DeviceRepository, Depends(_devices)]
_Bundles = Annotated[BundleRepository, Depends(_bundles)]
_BlobsDep = Annotated[Blobs, Depends(_blobs)]


@router.get("")
def list_bundles(
    who: _Reader, bundles: _Bundles, window: Annotated[Window, Depends(newest_first)]
) -> ListPage[BundleObject]:
    """List the project's bundles, newest first."""
    page = bundles.list(who.project.id, window)
    return page_of([_shown(item) for item in page.items], has_more=page.has_more)


@router.get("/signing_key")
def get_signing_key(_: _Reader, keys: _SigningKeys) -> SigningKeyObject:
    """Return the key that signs this platform's bundles: what a device trusts."""
    public_key = keys.find_public()
    if public_key is None:
        raise NotFound("no bundle was signed yet: the key is made when a controller starts")
    return SigningKeyObject(id=key_id_of(public_key), public_key=public_key)


@router.get("/{bundle_id}")
def get_bundle(bundle_id: str, who: _Reader, bundles: _Bundles) -> BundleObject:
    """Return one bundle's facts."""
    return _shown(bundles.get(who.project.id, bundle_id))


@router.delete("/{bundle_id}")
def delete_bundle(bundle_id: str, who: _Who, bundles: _Bundles) -> BundleDeleted:
    """Take a bundle away; devices that have it keep it."""
    bundles.delete(who.project.id, bundle_id)
    return BundleDeleted(id=bundle_id)


@router.get("/{bundle_id}/content", response_class=StreamingResponse)
def get_bundle_content(
    bundle_id: str,
    request: Request,
    who: _Downloader,
    bundles: _Bundles,
    blobs: _BlobsDep,
    devices: _Devices,
) -> Response:
    """Return a bundle's bytes, all of them or the range that is asked for.

    A device reads the bundle that it should run, or runs; of others it does not hear.
    """
    is_device = Permission.DEVICE in who.permissions
    if is_device and not devices.may_read(who.access.key.id, bundle_id):
        raise NotFound(f"no bundle has the id {bundle_id!r}")
    bundle = bundles.get(who.project.id, bundle_id)
    etag = f'"{bundle.id}"'
    headers = {
        "accept-ranges": "bytes",
        "etag": etag,
        "content-disposition": "attachment",
        "x-content-type-options": "nosniff",
    }
    wanted = request.headers.get("range")
    if request.headers.get("if-range", etag) != etag:
        # What the client has the begin of is not this.
        wanted = None
    span = _span_of(wanted, bundle.size_bytes)
    if span is None:
        return Response(
            status_code=416, headers={**headers, "content-range": f"bytes */{bundle.size_bytes}"}
        )
    start, end = span
    is_part = (start, end) != (0, bundle.size_bytes)
    if is_part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{bundle.size_bytes}"
    headers["content-length"] = str(end - start)
    chunks = blobs.read(bundle.blob_key, start=start, end=end)
    # Read before anything is answered: what cannot be read at all is an error with a status.
    first = next(chunks, b"")
    return StreamingResponse(
        chain((first,), chunks),
        status_code=206 if is_part else 200,
        media_type="application/octet-stream",
        headers=headers,
    )


def _span_of(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one it ends before; nothing where there is no such part.

    What is no single range of bytes is ignored, as the standard says: all of it is answered.
    """
    found = _RANGE.fullmatch(header.strip()) if header is not None else None
    if found is None or not any(found.groups()):
        return 0, size
    first, last = found.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < start:
            return 0, size
    return (start, end) if start < end else None


def _shown(bundle: Bundle) -> BundleObject:
    return BundleObject(
        id=bundle.id,
        created_at=int(bundle.created_at),
        name=bundle.name,
        model=bundle.model_id,
        bytes=bundle.size_bytes,
        manifest=bundle.manifest,
    )
