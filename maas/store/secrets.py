"""Secrets that must be read back (an external engine's key), sealed before they are stored.

The key is a file of ``MAAS_HOME`` that only its owner can read, so a copy of the database
alone opens nothing. Gateways on other machines need the same file.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from maas.core.errors import ConfigError

KEY_FILE = "secret.key"


@dataclass(frozen=True)
class Sealing:
    """How what must be given again is sealed before it is stored: a new key, say."""

    seal: Callable[[str], str]
    open: Callable[[str], str]


class SecretBox:
    """Seals and opens secrets with the key of one ``MAAS_HOME``.

    Args:
        home: Folder of the key file; the file is made, mode 0600, at the first ``seal``.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / KEY_FILE

    def _fernet(self, *, make: bool) -> Fernet:
        if make and not self._path.exists():
            self._make()
        try:
            return Fernet(self._path.read_bytes().strip())
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self._path}: not there, so stored secrets cannot be opened; "
                "copy it from the machine that stored them, or store them again"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{self._path}: not a key made by this platform") from error

    def _make(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f"{KEY_FILE}.{os.getpid()}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(Fernet.generate_key() + b"\n")
        try:
            # link, not rename: of two processes that make the key at once, the first wins.
            os.link(draft, self._path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()

    def seal(self, secret: str) -> str:
        """Return the secret encrypted, as text.

        Raises:
            ConfigError: The key file holds no key.
        """
        return self._fernet(make=True).encrypt(secret.encode()).decode("ascii")

    def open(self, sealed: str) -> str:
        """Return what ``seal`` was given.

        Raises:
            ConfigError: The key file is missing, or the text was sealed with another key.
        """
        fernet = self._fernet(make=False)
        try:
            return fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise ConfigError(
                f"a stored secret was sealed with another key than {self._path}: copy that file "
                "from the machine that stored it, or store it again"
            ) from error
