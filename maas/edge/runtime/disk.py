"""Files that survive a power cut: the old one or the new one, never a part."""

import hashlib
import os
from pathlib import Path


def write_whole(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file in one step: it is the old one or the new one, whatever happens.

    Args:
        path: The file; its folder is there.
        data: All of it.
        mode: Who may read a new file, before the process's mask.
    """
    new = path.with_name(f".{path.name}.{hashlib.sha256(data).hexdigest()[:8]}.new")
    # What a power cut left may be open to others.
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Have a folder's names on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
