"""Uploads on the wire."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from maas.gateway.files.schemas import FileObject
from maas.gateway.organization.wire import Body
from maas.store.uploads import MAX_PARTS, Upload, UploadPart


class ExpiresAfter(Body):
    """When the file goes away."""

    anchor: str
    seconds: int


class UploadBody(Body):
    """A new upload."""

    filename: Annotated[str, Field(min_length=1, max_length=255)]
    purpose: str
    bytes: Annotated[int, Field(gt=0)]
    mime_type: Annotated[str, Field(min_length=1, max_length=255)]
    expires_after: ExpiresAfter | None = None


class CompleteBody(Body):
    """Which parts make the file, in order."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_PARTS)]
    md5: Annotated[str | None, Field(pattern="^[0-9a-fA-F]{32}$")] = None


class UploadObject(BaseModel):
    """An upload; ``file`` once it is complete."""

    object: Literal["upload"] = "upload"
    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None = None


class PartObject(BaseModel):
    """A part that was taken in."""

    object: Literal["upload.part"] = "upload.part"
    id: str
    created_at: int
    upload_id: str


def shown(upload: Upload, file: FileObject | None = None) -> UploadObject:
    """Return an upload as it is shown."""
    return UploadObject(
        id=upload.id,
        bytes=upload.size_bytes,
        created_at=int(upload.created_at),
        expires_at=int(upload.expires_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status,
        file=file,
    )


def shown_part(part: UploadPart, created_at: float) -> PartObject:
    """Return a part as it is shown."""
    return PartObject(id=part.id, created_at=int(created_at), upload_id=part.upload_id)
