"""On what terms a key may ask a model: what it counts against, what it costs, whose turn it is."""

from collections.abc import Mapping
from dataclasses import dataclass

from maas.core.errors import AuthenticationFailed
from maas.gateway.relay.fairness import Priority
from maas.ledger.caps import COUNTED_IN_TOKENS, Cap, caps_of, subject_of, subjects_of
from maas.ledger.entries import Payer
from maas.ledger.prices import Price, PriceBook
from maas.store.records import DesiredState, Limit

_PRIORITIES = {priority.name.lower(): priority for priority in Priority}


@dataclass(frozen=True)
class Terms:
    """The terms of one key with one model.

    Attributes:
        weight: Of the project in front of a saturated deployment.
        counts_tokens: Whether a cap is on tokens, or on what they cost.
    """

    payer: Payer
    caps: tuple[Cap, ...]
    price: Price
    weight: float
    priority: Priority
    counts_tokens: bool


class TermsBook:
    """All terms, as of one reading of the store.

    Args:
        state: Keys, projects and limits.
        prices: Those in force.
    """

    def __init__(self, state: DesiredState, prices: PriceBook) -> None:
        self._projects = {project.id: project for project in state.projects}
        self._project_of = {key.id: key.project_id for key in state.keys}
        self._limits: Mapping[str, Limit] = {
            subject_of(limit.scope.value, limit.scope_id, limit.model): limit
            for limit in state.limits
        }
        self._prices = prices
        self._base_of = {tuned.id: tuned.base_model_id for tuned in state.tuned_models}
        self._known: dict[tuple[str, str], Terms] = {}

    def terms_of(self, key_id: str, model_id: str) -> Terms:
        """Return the terms; worked out once for each pair.

        Raises:
            AuthenticationFailed: The key was there a moment ago, and is no more.
        """
        pair = (key_id, model_id)
        found = self._known.get(pair)
        if found is None:
            found = self._known[pair] = self._work_out(key_id, model_id)
        return found

    def _work_out(self, key_id: str, model_id: str) -> Terms:
        project_id = self._project_of.get(key_id)
        if project_id is None:
            raise AuthenticationFailed("the API key is no more")
        project = self._projects[project_id]
        payer = Payer(project.organization_id, project.id, key_id)
        base = self._base_of.get(model_id)
        subjects = subjects_of(
            organization_id=payer.organization_id,
            project_id=payer.project_id,
            key_id=key_id,
            model=model_id,
            base=base or "",
        )
        caps = [
            cap
            for subject in subjects
            if (limit := self._limits.get(subject)) is not None
            for cap in caps_of(limit, subject)
        ]
        priority = _PRIORITIES[project.priority.value]
        tier = "default" if priority is Priority.ONLINE else project.priority.value
        price = self._prices.price_of(model_id, tier, base=base)
        counts_tokens = any(cap.metric in COUNTED_IN_TOKENS for cap in caps)
        return Terms(payer, tuple(caps), price, float(project.weight), priority, counts_tokens)
