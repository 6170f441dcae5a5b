"""On whose behalf the store is changed: known to the audit log without being passed around."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Actor:
    """Who changes something.

    Attributes:
        kind: ``api_key``, ``cli`` or ``system``.
        id: Of the key; the user's name on this machine; the process.
        request_id: Of the request, where there is one.
    """

    kind: str
    id: str
    request_id: str = ""


SYSTEM = Actor("system", "maas")
_CURRENT: ContextVar[Actor] = ContextVar("actor", default=SYSTEM)


def current_actor() -> Actor:
    """Return who acts in this context."""
    return _CURRENT.get()


def act_as(actor: Actor) -> None:
    """Let this context, to its end, act on somebody's behalf."""
    _CURRENT.set(actor)


@contextmanager
def acting_as(actor: Actor) -> Generator[None]:
    """Act on somebody's behalf inside."""
    token = _CURRENT.set(actor)
    try:
        yield
    finally:
        _CURRENT.reset(token)
