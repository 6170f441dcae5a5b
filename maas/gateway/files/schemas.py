"""Files on the wire."""

import re
from typing import Literal

from pydantic import BaseModel

from maas.core.errors import InvalidRequest
from maas.gateway.organization.wire import seconds
from maas.store.files import StoredFile

PURPOSES = (
    *("fine-tune", "batch", "evals", "user_data", "assistants", "vision"),
    "adapter",
)
_DIGITS = re.compile(r"[0-9]{1,9}")
MIN_LIFETIME_S, MAX_LIFETIME_S = 3600, 2_592_000


class FileObject(BaseModel):
    """A file."""

    object: Literal["file"] = "file"
    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    object: Literal["file"] = "file"
    id: str
    deleted: Literal[True] = True


def shown(file: StoredFile) -> FileObject:
    """Return a file as it is shown."""
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=int(file.created_at),
        expires_at=seconds(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
        status_details=file.status_details,
    )


def check_purpose(purpose: str | None) -> str:
    """Return a purpose that is known.

    Raises:
        InvalidRequest: It is none.
    """
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"purpose {purpose!r} is not known; want {', '.join(PURPOSES)}", param="purpose"
        )
    return purpose


def lifetime_of(fields: dict[str, str]) -> int | None:
    """Return ``expires_after`` of a form in seconds.

    Raises:
        InvalidRequest: It makes no sense.
    """
    anchor, text = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and text is None:
        return None
    number = _DIGITS.fullmatch(text or "")
    return checked_lifetime(anchor, int(number[0]) if number is not None else None)


def checked_lifetime(anchor: str | None, lifetime_s: int | None) -> int:
    """Return a lifetime within bounds.

    Raises:
        InvalidRequest: It is not.
    """
    if anchor != "created_at":
        raise InvalidRequest(
            "expires_after.anchor: want 'created_at'", param="expires_after.anchor"
        )
    if lifetime_s is None or not MIN_LIFETIME_S <= lifetime_s <= MAX_LIFETIME_S:
        raise InvalidRequest(
            f"expires_after.seconds: want {MIN_LIFETIME_S} to {MAX_LIFETIME_S}",
            param="expires_after.seconds",
        )
    return lifetime_s


def safe_filename(name: str) -> str:
    """Return a file's name without the folders some clients send along."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1][-255:]
    # Whoever saves it under its name must not end up in another folder.
    return "file" if last in {"", ".", ".."} else last
