"""The admin key: made at the first start, kept in a file that only this user can read."""

from maas.bootstrap.store import Store
from maas.core.errors import AuthenticationFailed
from maas.core.settings import Settings
from maas.store.keys import check_key
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
    path = settings.home / ADMIN_KEY_FILE
    path.unlink(missing_ok=True)
    _, full_key = store.keys.create(
        project_id=ensure_project(store.database, store.clock),
        name="admin",
        scopes=("inference", "admin"),
    )
    path.touch(mode=0o600)
    path.write_text(full_key + "\n", encoding="utf-8")
