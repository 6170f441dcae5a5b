"""The key that signs bundles: one row, so that all homes on a store sign with the same one.

The private half is sealed with ``secret.key``. The public half is no secret: whoever hands it to
devices needs no key to open it.
"""

from dataclasses import dataclass

from sqlalchemy import select

from maas.core.clock import Clock
from maas.core.errors import ConfigError
from maas.store.database import Database
from maas.store.edge_tables import BundleRow, SigningKeyRow
from maas.store.secrets import Sealing

BUNDLES = "bundles"


@dataclass(frozen=True)
class KeyPair:
    """Both halves of a key, in hexadecimal."""

    public_key: str
    private_key: str


class SigningKeyRepository:
    """Keeps the key that signs bundles."""

    def __init__(self, database: Database, clock: Clock, sealing: Sealing) -> None:
        self._database = database
        self._clock = clock
        self._sealing = sealing

    def find_public(self) -> str | None:
        """Return the public half; none where no key was kept yet."""
        with self._database.read() as session:
            row = session.get(SigningKeyRow, BUNDLES)
            return None if row is None else row.public_key

    def open(self) -> KeyPair | None:
        """Return both halves; none where no key was kept yet.

        Raises:
            ConfigError: This home's ``secret.key`` does not open it.
        """
        with self._database.read() as session:
            row = session.get(SigningKeyRow, BUNDLES)
        if row is None:
            return None
        try:
            return KeyPair(row.public_key, self._sealing.open(row.sealed_key))
        except ConfigError as error:
            # Another one in its place would be refused by every device that trusts this one.
            raise ConfigError(
                f"the store's key for signing bundles cannot be opened here: {error.message}"
            ) from error

    def keep(self, pair: KeyPair) -> str:
        """Keep a key, unless one is kept already: of all that try, the first wins.

        Returns:
            The public half of the one that is kept.

        Raises:
            ConfigError: ``secret.key`` holds no key to seal it with.
        """
        sealed = self._sealing.seal(pair.private_key)
        with self._database.write(bump_revision=False) as session:
            row = session.get(SigningKeyRow, BUNDLES)
            if row is None:
                row = SigningKeyRow(
                    id=BUNDLES,
                    public_key=pair.public_key,
                    sealed_key=sealed,
                    created_at=self._clock.now(),
                )
                session.add(row)
            return row.public_key

    def has_bundles(self) -> bool:
        """Say whether bundles were made on this store: some key signed them."""
        with self._database.read() as session:
            return session.scalars(select(BundleRow.id).limit(1)).first() is not None
