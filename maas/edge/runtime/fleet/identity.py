"""``fleet.json``: whose device this is, readable by its owner only.

It is written before the gateway is asked, with the nonce that makes asking again give the same
device and the same key, and again with what was answered.
"""

import hashlib
import secrets
from pathlib import Path

import msgspec

from maas.core.errors import ConfigError, Conflict
from maas.edge.runtime.disk import sync, write_whole

_NONCE_BYTES = 32
_OWNER_ONLY = 0o600


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """This device, as one gateway knows it.

    Attributes:
        gateway: Its URL, without ``/v1``.
        nonce: Drawn here, once for each code.
        code_sha256: Of the code it was, or is being, enrolled with.
        device_id: None while the gateway has not answered.
        key: Likewise; told to nobody but the gateway.
        name: As the gateway has it.
        enrolled_at: Seconds since the epoch.
        bundle_public_key: Signs the gateway's bundles; none where it did not say.
    """

    gateway: str
    nonce: str
    code_sha256: str
    device_id: str | None = None
    key: str | None = None
    name: str | None = None
    enrolled_at: float | None = None
    bundle_public_key: str | None = None


def identity_path(home: Path) -> Path:
    """Return where it is."""
    return home / "fleet.json"


def read_identity(home: Path) -> Identity | None:
    """Return what is known; none where this device never asked to be enrolled.

    Raises:
        ConfigError: The file is damaged.
    """
    path = identity_path(home)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}; maas-edge leave, and enrol anew") from error


def write_identity(home: Path, identity: Identity) -> None:
    """Keep it; it is on the disk when this returns."""
    home.mkdir(parents=True, exist_ok=True)
    write_whole(identity_path(home), msgspec.json.encode(identity), mode=_OWNER_ONLY)


def begin_enrolment(home: Path, gateway: str, code: str) -> Identity:
    """Keep what the gateway will be asked with; asking again is asked with the same.

    Raises:
        Conflict: This device is enrolled.
    """
    known = read_identity(home)
    if known is not None and known.key is not None:
        raise Conflict(
            f"this device is {known.device_id} of {known.gateway}; maas-edge leave forgets that"
        )
    # However it is typed, it is the same code.
    typed = code.lower().replace("-", "").replace(" ", "")
    code_sha256 = hashlib.sha256(typed.encode()).hexdigest()
    if known is not None and (known.gateway, known.code_sha256) == (gateway, code_sha256):
        return known
    nonce = secrets.token_hex(_NONCE_BYTES)
    begun = Identity(gateway=gateway, nonce=nonce, code_sha256=code_sha256)
    write_identity(home, begun)
    return begun


def forget_identity(home: Path, *others: Path) -> None:
    """Forget it, and with it other files of the device's time in the fleet."""
    for path in (identity_path(home), *others):
        path.unlink(missing_ok=True)
    sync(home)


def gateway_url(text: str) -> str:
    """Return a gateway's URL as it is kept.

    Raises:
        ConfigError: It is none.
    """
    url = text.strip().rstrip("/").removesuffix("/v1")
    scheme, _, rest = url.partition("://")
    if scheme not in {"http", "https"} or not rest or any(c.isspace() for c in rest):
        raise ConfigError(f"{text!r}: want the gateway's URL, like https://models.example.org")
    if "@" in rest or "?" in rest or "#" in rest:
        raise ConfigError(f"{text!r}: want a URL without user, query and fragment")
    return url
