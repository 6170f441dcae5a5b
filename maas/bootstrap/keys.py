"""The admin key: made at the first start, kept in a file that only this user can read."""

from maas.bootstrap.store import Store
from maas.core.errors import AuthenticationFailed
from maas.core.settings import Settings
from maas.store.keys import check_key
from maas.store.state import ensure_project

ADMIN_KEY_FILE = "admin.key"


def ensure_admin_key(settings: Settings, store: Store) -> bool:
    """Make the admin key where there is none that works.

    Returns:
        Whether one was made: this is the first start on this store.
    """
    path = settings.home / ADMIN_KEY_FILE
    keys_by_id = {key.id: key for key in store.keys.list()}
    if path.exists():
        try:
            check_key(path.read_text(encoding="utf-8").strip(), keys_by_id)
        except AuthenticationFailed:
            path.unlink()
        else:
            return False
    _, full_key = store.keys.create(
        project_id=ensure_project(store.database, store.clock),
        name="admin",
        scopes=("inference", "admin"),
    )
    path.touch(mode=0o600)
    path.write_text(full_key + "\n", encoding="utf-8")
    return True
