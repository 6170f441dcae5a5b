"""What is written about use: reservations before dispatch, entries once it is over."""

import hashlib
from decimal import Decimal
from enum import StrEnum

import msgspec

_ONCE = "once-"


def once_id(name: str) -> str:
    """Return the id of a charge that several may make: the journal takes the first of them.

    Args:
        name: The same for all who make it.
    """
    return _ONCE + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:40]


class Exactness(StrEnum):
    """How an amount is known: from the engine's own count, or from what was seen to go out."""

    EXACT = "exact"
    ESTIMATED = "estimated"


class Payer(msgspec.Struct, frozen=True, array_like=True):
    """On whose account."""

    organization_id: str
    project_id: str
    key_id: str


class Opened(msgspec.Struct, frozen=True, tag="open", array_like=True):
    """A reservation was made; its request may be sent.

    Attributes:
        at: Epoch seconds of the admission: it decides the window and the off-peak factor.
        input_tokens: Estimate, for the case that nobody ever says more.
        base_model_id: What a tuned model was tuned from: its limits count this too.
    """

    id: str
    at: float
    payer: Payer
    request_id: str
    endpoint: str
    model_id: str
    tier: str
    price_id: str
    input_tokens: int
    base_model_id: str = ""


class Progressed(msgspec.Struct, frozen=True, tag="progress", array_like=True):
    """So much was delivered by now."""

    id: str
    output_tokens: int


class Dropped(msgspec.Struct, frozen=True, tag="drop", array_like=True):
    """Nothing was delivered and nothing is charged."""

    id: str


class GaveBack(msgspec.Struct, frozen=True, tag="back", array_like=True):
    """What lay idle was given back: a place in the log for a posting without a charge."""


class Entry(msgspec.Struct, frozen=True, tag="entry", array_like=True):
    """A charge, as the journal keeps it.

    Attributes:
        base_model_id: What a tuned model was tuned from: its limits count this too.
    """

    id: str
    at: float
    payer: Payer
    request_id: str
    endpoint: str
    model_id: str
    tier: str
    price_id: str
    currency: str
    amount: Decimal
    exactness: Exactness
    num_requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    training_tokens: int = 0
    gpu_milliseconds: int = 0
    storage_mib_hours: int = 0
    export_milliseconds: int = 0
    # At the end, with a default: logs that were written before it are read all the same.
    base_model_id: str = ""

    @property
    def may_be_known(self) -> bool:
        """Whether another spender may have made this charge before."""
        return self.id.startswith(_ONCE)

    @property
    def num_tokens(self) -> int:
        """Tokens that count against limits."""
        return self.input_tokens + self.output_tokens + self.training_tokens


Record = Opened | Progressed | Dropped | GaveBack | Entry
