"""Whose key signs bundles: the store's, the same in every home.

A platform of before had it in ``MAAS_HOME/bundle.key``, and devices trust that one: the first home
that has the file gives it to a store without a key.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from maas.core.errors import ConfigError
from maas.edge.runtime.bundle.signing import (
    generate_key,
    key_id_of,
    load_or_make_key,
    private_key_of,
    private_text_of,
    public_key_of,
)
from maas.store.signing_keys import KeyPair, SigningKeyRepository

log = logging.getLogger(__name__)

KEY_FILE = "bundle.key"


@dataclass(frozen=True)
class BundleSigning:
    """The key that signs bundles.

    Attributes:
        keys: Where it is.
        file: Where it was before.
    """

    keys: SigningKeyRepository
    file: Path

    def prepare(self) -> None:
        """Have a key before it is asked for, so that devices hear of it when they enrol.

        Where bundles were signed already and this home has no file, another home has it: then the
        first export makes a new key, and not a process that merely starts first.

        Raises:
            ConfigError: The file holds no key, or the store's is not to be opened here.
        """
        if self.file.exists():
            self._say_unused(public_key_of(self._opened() or self._keep(self._of_file())))
        elif self._opened() is None and not self.keys.has_bundles():
            self._keep(generate_key())

    def private_key(self) -> str:
        """Return the private half, in hexadecimal; a key is made where there is none.

        Raises:
            ConfigError: The file holds no key, or the store's is not to be opened here.
        """
        key = self._opened()
        if key is None and self.file.exists():
            key = self._keep(self._of_file())
        elif key is None:
            if self.keys.has_bundles():
                log.warning(
                    "%s is not there: bundles are signed by a new key from now on, and devices "
                    "that trust the old one refuse them",
                    self.file,
                )
            key = self._keep(generate_key())
        return private_text_of(key)

    def _opened(self) -> Ed25519PrivateKey | None:
        pair = self.keys.open()
        if pair is None:
            return None
        key = private_key_of(pair.private_key)
        if public_key_of(key) != pair.public_key:
            raise ConfigError("the store's key for signing bundles is damaged: its halves differ")
        return key

    def _of_file(self) -> Ed25519PrivateKey:
        return load_or_make_key(self.file)

    def _keep(self, key: Ed25519PrivateKey) -> Ed25519PrivateKey:
        """Keep a key; return the one that is kept, which may be another process's."""
        kept = self.keys.keep(KeyPair(public_key_of(key), private_text_of(key)))
        if kept == public_key_of(key):
            log.info("bundles are signed by key %s", key_id_of(kept))
            return key
        return self._opened() or key

    def _say_unused(self, public_key: str) -> None:
        of_file = public_key_of(self._of_file())
        if of_file != public_key:
            log.warning(
                "%s is key %s, and is not used: the store's is %s",
                self.file,
                key_id_of(of_file),
                key_id_of(public_key),
            )
