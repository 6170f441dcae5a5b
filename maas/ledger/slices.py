"""Slices of caps: what a gateway holds of a counter, and arithmetic on it."""

from dataclasses import dataclass

from maas.ledger.caps import Amounts, Cap, Metric

# What was not used for so long is given back, with the next posting.
IDLE_S = 1.0
IDLE_WAIT_S = 2 * IDLE_S
# How long a cap is worth waiting for. Money that is reserved comes back in seconds; of the other
# caps what lies idle with another gateway does, and what is open does not.
BUDGET_WAIT_S = 10.0
_WAIT_S = {Metric.MONTHLY_BUDGET: BUDGET_WAIT_S, Metric.CONCURRENT_REQUESTS: 0.0}
_ASK_AGAIN_FOR_S = 1.0


class Slice:
    """What this gateway holds of one counter.

    Attributes:
        free: To be reserved.
        held: Reserved by open requests.
        spent: Used up and not yet posted.
        overdrawn: Used beyond what was reserved and free, and not yet posted.
        low: Below this it is time to ask for more.
        remaining: Held by nobody, when the store was last asked.
        leased: Held by all gateways, when the store was last asked.
        unit: Which of the ``Amounts`` it counts.
    """

    __slots__ = (
        "cap",
        "free",
        "held",
        "leased",
        "low",
        "overdrawn",
        "remaining",
        "spent",
        "unit",
        "used_at",
        "window",
    )

    def __init__(self, cap: Cap, now: float) -> None:
        self.cap = cap
        self.window = cap.window(now)
        self.unit = cap.metric.unit
        self.free = self.held = self.spent = self.overdrawn = self.low = 0
        self.remaining = self.leased = 0
        self.used_at = now

    @property
    def may_come_back(self) -> int:
        """Reserved somewhere, and maybe not used in the end."""
        return max(self.leased - self.free - self.spent, self.held)

    @property
    def held_elsewhere(self) -> int:
        """Granted to other gateways, and given back by those that do not use it."""
        return max(self.leased - self.free - self.held - self.spent, 0)

    def has_ended(self, now: float) -> bool:
        """Say whether its window is over."""
        return self.window.end is not None and now >= self.window.end

    @property
    def is_forgettable(self) -> bool:
        """Whether nothing of it is left."""
        return not (self.held or self.free or self.spent)

    def may_be_had(self, amount: int, *, waited_s: float, wait_s: float) -> bool:
        """Say whether an amount that is not free may still be had by waiting.

        Args:
            amount: What is wanted.
            waited_s: How long it was waited for.
            wait_s: How long its request may wait at most.
        """
        if amount <= self.free + self.remaining:
            # Somebody here was faster with the last grant: the store has more.
            return waited_s < max(wait_s, _ASK_AGAIN_FOR_S)
        if waited_s >= min(wait_s, _WAIT_S.get(self.cap.metric, IDLE_WAIT_S)):
            return False
        is_budget = self.cap.metric is Metric.MONTHLY_BUDGET
        back = self.may_come_back if is_budget else self.held_elsewhere
        return amount <= self.free + self.remaining + back

    def collect(self, used: dict[str, int], released: dict[str, int], *, gives_back: bool) -> None:
        """Move what is spent, and what is free where it is given back, into a posting."""
        key, over = self.window.key, self.spent + self.overdrawn
        given = self.free if gives_back else 0
        if not self.cap.metric.is_journaled and over:
            used[key] = used.get(key, 0) + over
        if self.spent + given:
            released[key] = released.get(key, 0) + self.spent + given
        self.free -= given
        self.spent = self.overdrawn = 0


@dataclass(frozen=True, slots=True)
class Account:
    """The slices that a request counts against, in one minute.

    Attributes:
        by_minute: Those of requests and of tokens a minute, which callers are told of.
    """

    caps: tuple[Cap, ...]
    slices: tuple[Slice, ...]
    by_minute: tuple[tuple[Slice, ...], tuple[Slice, ...]]

    def take(self, most: Amounts) -> bool:
        """Reserve an amount in every slice, or in none."""
        slices = self.slices
        for number, piece in enumerate(slices):
            amount = most[piece.unit]
            free = piece.free - amount
            if free < 0:
                for taken in slices[:number]:
                    taken.free += most[taken.unit]
                    taken.held -= most[taken.unit]
                return False
            piece.free = free
            piece.held += amount
        return True

    def let_go(self, most: Amounts, used: Amounts) -> None:
        """Free what was reserved, but for what was used."""
        for piece in self.slices:
            unit = piece.unit
            reserved, actual = most[unit], used[unit]
            piece.held -= reserved
            free = piece.free + reserved - actual
            if free >= 0:
                piece.free = free
                piece.spent += actual
            else:
                piece.free = 0
                piece.spent += actual + free
                piece.overdrawn -= free
