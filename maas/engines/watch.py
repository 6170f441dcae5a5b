"""Tells a hung engine from a busy one."""

from dataclasses import replace

from maas.engines.contract import EngineLoad


def observed(load: EngineLoad, *, num_unanswered: int, cpu_s: float | None) -> EngineLoad:
    """Return what the detector should see of an engine.

    Args:
        load: What the engine says of itself. A core that hangs says that it is idle, or nothing.
        num_unanswered: Probes that wait for their answer: requests it holds, whatever it says.
        cpu_s: Processor time its processes have used, where it was looked up. It stands in for
            tokens where an engine does not count them: who generates computes, also on a GPU
            (transformers serve on two processors: 2 s each second), while a front end that only
            answers ``/health`` does not (5 ms each second). An engine that spins is not caught.
    """
    progress = load.num_tokens_total
    # Whole seconds: what the front end uses meanwhile must not look like work.
    if progress is None and cpu_s is not None:
        progress = float(int(cpu_s))
    num_waiting = load.num_waiting + num_unanswered
    return replace(load, num_waiting=num_waiting, num_tokens_total=progress)


class HangDetector:
    """Fed with samples of one engine; ``reason`` says why it counts as hung.

    An engine hangs when it holds requests while its token count stands still, or when it has
    stopped answering. For one that cannot count its tokens see ``observed``.

    Args:
        timeout_s: Seconds either may last.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._num_tokens: float | None = None
        self._moved_at: float | None = None
        self._answered_at: float | None = None
        self.reason: str | None = None

    def saw(self, load: EngineLoad, now: float) -> None:
        """Note that the engine answered with this load at ``now`` (monotonic seconds)."""
        self._answered_at = now
        is_idle = load.num_running + load.num_waiting == 0
        has_moved = load.num_tokens_total is None or load.num_tokens_total != self._num_tokens
        if is_idle or has_moved or self._moved_at is None:
            self._moved_at = now
        self._num_tokens = load.num_tokens_total
        stuck_s = now - self._moved_at
        if stuck_s >= self._timeout_s:
            self.reason = (
                f"hung: {load.num_running} running and {load.num_waiting} waiting requests, "
                f"no token for {stuck_s:.0f} s"
            )
        else:
            self.reason = None

    def missed(self, now: float) -> None:
        """Note that the engine did not answer at ``now`` (monotonic seconds)."""
        if self._answered_at is None:
            self._answered_at = now
        silent_s = now - self._answered_at
        if silent_s >= self._timeout_s:
            self.reason = f"hung: no answer for {silent_s:.0f} s"
