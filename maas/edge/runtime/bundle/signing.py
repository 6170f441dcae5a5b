"""Who made a bundle: ed25519 over the bytes of ``bundle.json``."""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from maas.core.errors import BundleRefused, ConfigError

MAX_SIGNATURE_BYTES = 4096
_SEED_BYTES = 32


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``bundle.sig``; keys and signature in hexadecimal."""

    key_id: str
    algorithm: str
    public_key: str
    signature: str


def load_or_make_key(path: Path) -> Ed25519PrivateKey:
    """Return the key in a file; one is made, readable by its owner only, where there is none.

    Raises:
        ConfigError: The file holds no key.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(Ed25519PrivateKey.generate().private_bytes_raw())
            stream.flush()
            os.fsync(stream.fileno())
        try:
            # Fails where another process was first: its key is the one.
            os.link(new, path)
        except FileExistsError:
            pass
        finally:
            new.unlink()
    seed = path.read_bytes()
    if len(seed) != _SEED_BYTES:
        raise ConfigError(f"{path}: not a signing key (want {_SEED_BYTES} bytes)")
    return Ed25519PrivateKey.from_private_bytes(seed)


def generate_key() -> Ed25519PrivateKey:
    """Return a new key."""
    return Ed25519PrivateKey.generate()


def private_key_of(text: str) -> Ed25519PrivateKey:
    """Return the key whose private half this is, in hexadecimal.

    Raises:
        ConfigError: It is none.
    """
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text))
    except ValueError as error:
        # What it was is said to nobody.
        raise ConfigError("not a signing key: want 64 hexadecimal digits") from error


def private_text_of(key: Ed25519PrivateKey) -> str:
    """Return the private half, in hexadecimal: told to nobody."""
    return key.private_bytes_raw().hex()


def public_key_of(key: Ed25519PrivateKey) -> str:
    """Return the public half, in hexadecimal: what a device trusts."""
    return key.public_key().public_bytes_raw().hex()


def key_id_of(public_key: str) -> str:
    """Return the short name of a public key."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:16]


def sign(data: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return ``bundle.sig`` for the bytes of ``bundle.json``."""
    public = public_key_of(key)
    made = Signature(key_id_of(public), "ed25519", public, key.sign(data).hex())
    return msgspec.json.encode(made)


def check_signature(data: bytes, signature: bytes, trusted: Collection[str] | None) -> str:
    """Check that a trusted key signed ``bundle.json``.

    Args:
        data: Its bytes.
        signature: Those of ``bundle.sig``.
        trusted: Public keys; none takes any key, and checks only that nothing was changed since.

    Returns:
        The public key that signed it.

    Raises:
        BundleRefused: Nobody trusted did, or it was changed since.
    """
    try:
        made = msgspec.json.decode(signature, type=Signature)
        if made.algorithm != "ed25519":
            raise BundleRefused(f"the bundle is signed by {made.algorithm!r}; want ed25519")
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(made.public_key))
        public.verify(bytes.fromhex(made.signature), data)
    except InvalidSignature as error:
        raise BundleRefused("the signature is not of this bundle: it was changed") from error
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise BundleRefused(f"the signature cannot be read: {error}") from error
    if trusted is not None and made.public_key not in trusted:
        raise BundleRefused(
            f"the bundle is signed by a key nobody here trusts ({key_id_of(made.public_key)}); if "
            f"you know it is its maker's: maas-edge trust {made.public_key}"
        )
    return made.public_key
