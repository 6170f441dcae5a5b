"""The controller's part in keeping files: the keeper, put together."""

from functools import partial

from maas.bootstrap.store import Store
from maas.core.settings import Settings
from maas.ledger.books import Books
from maas.ledger.storage import StorageLedger
from maas.ledger.tariff import Tariff
from maas.serving.storage import StorageKeeper
from maas.store.adapter_removal import known_weights
from maas.store.blobs import open_blobs
from maas.store.files import FileRepository
from maas.store.uploads import UploadRepository


def make_keeper(settings: Settings, store: Store) -> StorageKeeper:
    """Put together what keeps the storage of files in order."""
    database, clock = store.database, store.clock
    return StorageKeeper(
        FileRepository(database, clock),
        UploadRepository(database, clock),
        blobs=open_blobs(settings),
        ledger=StorageLedger(database, clock, Books(database, clock), Tariff(database, clock)),
        known_weights=partial(known_weights, database),
    )
