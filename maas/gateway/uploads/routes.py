"""Begin an upload, add parts, complete or cancel it."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from maas.core.errors import Conflict, InvalidRequest, PayloadTooLarge
from maas.core.settings import GatewaySettings
from maas.gateway.authority import ProjectAuthority, in_own_project
from maas.gateway.files import schemas as files_wire
from maas.gateway.files.received import received_of
from maas.gateway.uploads.schemas import (
    CompleteBody,
    PartObject,
    UploadBody,
    UploadObject,
    shown,
    shown_part,
)
from maas.store.files import FileRepository, NewFile
from maas.store.roles import Permission
from maas.store.uploads import UploadPart, UploadRepository

router = APIRouter(prefix="/v1/uploads", tags=["files"])

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
_Who = Annotated[ProjectAuthority, Depends(in_own_project(Permission.FILES))]


def _uploads(request: Request) -> UploadRepository:
    return request.app.state.uploads


_UploadsDep = Annotated[UploadRepository, Depends(_uploads)]


@router.post("")
def create_upload(
    body: UploadBody, request: Request, who: _Who, uploads: _UploadsDep
) -> UploadObject:
    """Begin an upload."""
    settings: GatewaySettings = request.app.state.settings
    if body.bytes > settings.max_upload_bytes:
        raise PayloadTooLarge(
            f"a file has at most {settings.max_upload_bytes} bytes", param="bytes"
        )
    after = body.expires_after
    upload = uploads.create(
        who.project.id,
        filename=files_wire.safe_filename(body.filename),
        purpose=files_wire.check_purpose(body.purpose),
        mime_type=body.mime_type,
        size_bytes=body.bytes,
        file_lifetime_s=after and files_wire.checked_lifetime(after.anchor, after.seconds),
    )
    return shown(upload)


@router.post("/{upload_id}/parts", openapi_extra=_FORM)
def add_part(upload_id: str, request: Request, who: _Who, uploads: _UploadsDep) -> PartObject:
    """Add a part."""
    received = received_of(request.scope)
    if received is None:
        raise InvalidRequest("want multipart/form-data")
    part = UploadPart(
        id=received.object_id,
        upload_id=upload_id,
        size_bytes=received.blob.size_bytes,
        sha256=received.blob.sha256,
        blob_key=received.blob.key,
        created_at=0.0,
    )
    return shown_part(uploads.add_part(who.project.id, part), who.tenancy.clock.now())


@router.post("/{upload_id}/complete")
def complete_upload(
    upload_id: str, body: CompleteBody, request: Request, who: _Who, uploads: _UploadsDep
) -> UploadObject:
    """Make the file of its parts."""
    files: FileRepository = request.app.state.files
    upload = uploads.get(who.project.id, upload_id)
    uploads.parts(who.project.id, upload_id, body.part_ids)
    received = received_of(request.scope)
    if received is None:
        raise Conflict(f"the upload {upload_id} changed meanwhile; try again")
    new = NewFile(
        id=received.object_id,
        project_id=who.project.id,
        filename=upload.filename,
        purpose=upload.purpose,
        size_bytes=received.blob.size_bytes,
        sha256=received.blob.sha256,
        expires_after_s=upload.file_lifetime_s,
    )
    with who.tenancy.database.together():
        done = uploads.finish(who.project.id, upload_id, file_id=new.id)
        file = files.create(new)
    return shown(done, files_wire.shown(file))


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, who: _Who, uploads: _UploadsDep) -> UploadObject:
    """Cancel an upload; no more parts are taken."""
    return shown(uploads.finish(who.project.id, upload_id, file_id=None))
