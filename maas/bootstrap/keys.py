"""The admin key: made at the first start, kept in a file that only this user can read."""

from maas.bootstrap.store import Store
from maas.core.errors import AuthenticationFailed
from maas.core.settings import Settings
from maas.store.keys import KEY_PREFIX, check_key
from maas.store.state import ensure_project

ADMIN_KEY_FILE = "admin.key"


def has_admin_key(settings: Settings, store: Store) -> bool:
    """Say whether the key file holds a key that works; without one this is the first start."""
    try:
        presented = (settings.home / ADMIN_KEY_FILE).read_text(encoding="utf-8").strip()
        check_key(presented, {key.id: key for key in store.keys.list()})
    except (FileNotFoundError, AuthenticationFailed):
        return False
    return True


def ensure_admin_key(settings: Settings, store: Store) -> None:
    """Make the admin key where there is none that works."""
    if has_admin_key(settings, store):
        return
    _, full_key = store.keys.create(
        project_id=ensure_project(store.database, store.clock),
        name="admin",
        scopes=("inference", "admin"),
    )
    _write(settings, full_key)


def keep_admin_key(settings: Settings, *, replaced: str, full_key: str) -> None:
    """Put a new key into the key file if it holds the one that was replaced.

    Args:
        settings: Say where the file is.
        replaced: Id of the old key.
        full_key: The new one.
    """
    try:
        held = (settings.home / ADMIN_KEY_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return
    if held.removeprefix(KEY_PREFIX).startswith(f"{replaced}-"):
        _write(settings, full_key)


def _write(settings: Settings, full_key: str) -> None:
    path = settings.home / ADMIN_KEY_FILE
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(full_key + "\n", encoding="utf-8")
