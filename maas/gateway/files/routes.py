"""Upload, list, read and delete files."""

from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import StreamingResponse

from maas.core.errors import InvalidRequest, UnknownField
from maas.gateway.authority import ProjectAuthority, in_own_project
from maas.gateway.files.received import received_of
from maas.gateway.files.schemas import (
    FileDeleted,
    FileObject,
    check_purpose,
    lifetime_of,
    safe_filename,
    shown,
)
from maas.gateway.organization.pages import ListPage, page_of
from maas.store.blobs import Blobs
from maas.store.files import FileRepository, NewFile
from maas.store.pages import Window
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/files", tags=["files"])

MAX_FILES_PAGE = 10_000
_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string"},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


def _files(request: Request) -> FileRepository:
    return request.app.state.files


def _blobs(request: Request) -> Blobs:
    return request.app.state.blobs


_FilesDep = Annotated[FileRepository, Depends(_files)]
_BlobsDep = Annotated[Blobs, Depends(_blobs)]
_Who = Annotated[ProjectAuthority, Depends(in_own_project(Permission.FILES))]
_Reader = Annotated[
    ProjectAuthority, Depends(in_own_project(Permission.FILES, or_else=Permission.READ))
]


@router.post("", openapi_extra=_FORM)
def create_file(request: Request, who: _Who, files: _FilesDep) -> FileObject:
    """Upload a file."""
    received = received_of(request.scope)
    if received is None:
        raise InvalidRequest("want multipart/form-data")
    unknown = sorted(received.fields.keys() - _FIELDS)
    if unknown:
        raise UnknownField(f"unknown field {unknown[0]!r}", param=unknown[0])
    file = files.create(
        NewFile(
            id=received.object_id,
            project_id=who.project.id,
            filename=safe_filename(received.filename),
            purpose=check_purpose(received.fields.get("purpose")),
            size_bytes=received.blob.size_bytes,
            sha256=received.blob.sha256,
            expires_after_s=lifetime_of(received.fields),
        )
    )
    return shown(file)


@router.get("")
def list_files(
    who: _Reader,
    files: _FilesDep,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_FILES_PAGE)] = MAX_FILES_PAGE,
    order: Literal["asc", "desc"] = "desc",
) -> ListPage[FileObject]:
    """List the project's files."""
    window = Window(after=after, limit=limit, is_newest_first=order == "desc")
    page = files.list(who.project.id, window, purpose)
    return page_of([shown(file) for file in page.items], has_more=page.has_more)


@router.get("/{file_id}")
def get_file(file_id: str, who: _Reader, files: _FilesDep) -> FileObject:
    """Return one file's facts."""
    return shown(files.get(who.project.id, file_id))


@router.delete("/{file_id}")
def delete_file(file_id: str, who: _Who, files: _FilesDep) -> FileDeleted:
    """Delete a file."""
    files.delete(who.project.id, file_id)
    return FileDeleted(id=file_id)


@router.get("/{file_id}/content", response_class=StreamingResponse)
def get_content(file_id: str, who: _Who, files: _FilesDep, blobs: _BlobsDep) -> StreamingResponse:
    """Return a file's bytes."""
    file = files.get(who.project.id, file_id)
    chunks = blobs.read(file.blob_key)
    # Read before anything is answered: what cannot be read at all is an error with a status.
    first = next(chunks, b"")
    return StreamingResponse(
        chain((first,), chunks),
        media_type="application/octet-stream",
        headers={
            "content-length": str(file.size_bytes),
            # A browser shall not take what somebody uploaded for a page of ours.
            "content-disposition": "attachment",
            "x-content-type-options": "nosniff",
        },
    )
