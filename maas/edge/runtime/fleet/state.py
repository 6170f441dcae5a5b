"""``agent.json``: what an agent must know after a power cut."""

import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from maas.edge.runtime.disk import write_whole
from maas.edge.runtime.fleet.wire import Desired, cut
from maas.protocol.devices import ErrorReport, SpeedReport, UpdateReport

log = logging.getLogger(__name__)

MAX_ERRORS = 20


class Mark(msgspec.Struct, frozen=True):
    """A bundle, and which attempt of its rollout."""

    bundle_id: str
    attempt: int


class Trying(msgspec.Struct, frozen=True):
    """A bundle that is not yet known to answer here.

    Attributes:
        num_starts: How often an agent began with it; each but the last one died.
    """

    mark: Mark
    num_starts: int


class Contact(msgspec.Struct, frozen=True):
    """What the gateway said last."""

    at: float
    fallback_model: str | None = None
    heartbeat_s: float = 60.0
    desired: Desired | None = None


class AgentState(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        failed: Not tried again until the attempt is higher, or another bundle was wanted.
        trying: While a bundle is tried, loaded and made the one in use.
        result: Of the last update, until the gateway was told.
        succeeded: The last success that was, or will be, told.
        speed: As it was measured when the bundle in use was tried.
        errors: Not told yet.
        contact: With the gateway.
    """

    failed: Mark | None = None
    trying: Trying | None = None
    result: UpdateReport | None = None
    succeeded: Mark | None = None
    speed: SpeedReport = msgspec.field(default_factory=SpeedReport)
    errors: tuple[ErrorReport, ...] = ()
    contact: Contact | None = None


def state_path(home: Path) -> Path:
    """Return where it is."""
    return home / "agent.json"


class StateFile:
    """Keeps the state; every change is on the disk when it returns.

    Args:
        home: The device's folder.
    """

    def __init__(self, home: Path) -> None:
        self._path = state_path(home)
        self.state = read_state(home)

    def change(self, **fields: Any) -> None:
        """Replace fields of the state."""
        changed = msgspec.structs.replace(self.state, **fields)
        if changed == self.state:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, msgspec.json.encode(changed))
        self.state = changed

    def add_error(self, code: str, message: str) -> None:
        """Remember an error until the gateway was told; the oldest go where there are too many."""
        log.warning("%s: %s", code, message)
        errors = self.state.errors
        if errors and (errors[-1].code, errors[-1].message) == (code, cut(message)):
            return
        new = ErrorReport(int(time.time()), code, cut(message))
        self.change(errors=(*errors, new)[-MAX_ERRORS:])

    def was_told(self, result: UpdateReport | None, errors: Collection[ErrorReport]) -> None:
        """Forget what the gateway knows now."""
        state = self.state
        self.change(
            result=None if state.result == result else state.result,
            errors=tuple(error for error in state.errors if error not in errors),
        )


def read_state(home: Path) -> AgentState:
    """Return the state; an empty one where there is none or it cannot be read."""
    try:
        return msgspec.json.decode(state_path(home).read_bytes(), type=AgentState)
    except FileNotFoundError:
        return AgentState()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        log.exception("%s cannot be read; it begins anew", state_path(home))
        return AgentState()
