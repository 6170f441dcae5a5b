"""What a heartbeat tells, put together."""

import time
from dataclasses import dataclass, field
from importlib.metadata import version

from maas.core.errors import MaasError
from maas.edge.runtime.fleet.seat import Seat
from maas.edge.runtime.fleet.state import StateFile
from maas.edge.runtime.fleet.telemetry import (
    BatteryGauge,
    EnergyGauge,
    read_machine,
    read_memory,
)
from maas.edge.runtime.fleet.updates import Updater
from maas.edge.runtime.fleet.wire import DeviceState
from maas.edge.runtime.server.counters import Counters
from maas.edge.runtime.server.offline import OfflineQueue
from maas.protocol.devices import (
    CounterReport,
    HeartbeatRequest,
    MachineReport,
    PaceReport,
    SpeedReport,
)


@dataclass(frozen=True)
class Reporter:
    """Reads all that is told."""

    seat: Seat
    updater: Updater
    store: StateFile
    counters: Counters
    queue: OfflineQueue
    battery: BatteryGauge
    energy: EnergyGauge = field(default_factory=EnergyGauge)
    machine: MachineReport = field(default_factory=read_machine)
    started_at: int = field(default_factory=lambda: int(time.time()))

    def report(self) -> HeartbeatRequest:
        """Return the heartbeat of this moment."""
        state, counters = self.store.state, self.counters
        return HeartbeatRequest(
            agent_version=version("maas"),
            started_at=self.started_at,
            bundle_id=self.seat.bundle_id,
            previous_bundle_id=self._previous(),
            state=self._state(),
            # How the last one ended is told first, as it is told once.
            update=state.result or self.updater.progress,
            machine=self.machine,
            memory=read_memory(),
            speed=self._speed(),
            energy=self.energy.read(counters.num_completion_tokens, self.battery()),
            pace=self._pace(),
            counters=CounterReport(
                requests_total=counters.num_requests,
                completion_tokens_total=counters.num_completion_tokens,
                fallbacks_total=counters.num_fallbacks,
                queued=self.queue.num_waiting,
            ),
            errors=list(state.errors),
        )

    def _state(self) -> DeviceState:
        if self.updater.progress is not None:
            return "updating"
        if self.seat.held is not None:
            return "ok"
        contact = self.store.state.contact
        return "error" if contact is not None and contact.desired is not None else "idle"

    def _speed(self) -> SpeedReport:
        """Return the trial's figures, and what answers were lately where there were some."""
        tried = self.store.state.speed
        lately = self.counters.decode_tok_s
        return SpeedReport(tried.load_s, tried.prefill_tok_s, lately or tried.decode_tok_s)

    def _pace(self) -> PaceReport:
        pace = self.seat.loader.options.pace()
        return PaceReport(pace.share, pace.reason, pace.temperature_c)

    def _previous(self) -> str | None:
        try:
            held = self.seat.shelf.previous()
        except (MaasError, OSError):
            return None
        return held.manifest.bundle_id if held else None
