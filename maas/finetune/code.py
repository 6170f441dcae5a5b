"""Which code tuned a model: its lineage says so. Light."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGE = "maas"


@cache
def code_version() -> str:
    """Return the release, and a hash of this package's sources: a release may have been changed."""
    try:
        release = version(_PACKAGE)
    except PackageNotFoundError:
        release = "0"
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{release}+{digest.hexdigest()[:12]}"
