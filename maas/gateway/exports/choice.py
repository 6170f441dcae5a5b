"""What an export is made of: a base, what is merged into it, and what is chosen at run time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from maas.catalog.card import ModelCard
from maas.core.errors import CapabilityMissing, InvalidRequest, ModelNotFound
from maas.edge.export.offered import check_card
from maas.edge.runtime.bundle.manifest import MAX_ADAPTERS, device_name
from maas.finetune.registry import check_allows_export
from maas.gateway.exports.schemas import ExportBody
from maas.store.adapters import TunedModel, TunedModelRepository, TunedState
from maas.store.aliases import AliasRepository


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        model_id: The base, or the tuned model whose weights the bundle has.
        adapters: Tuned models chosen at run time, by their names in the bundle.
    """

    card: ModelCard
    model_id: str
    adapters: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Chooser:
    """Finds what a project names.

    Attributes:
        check_name: Told a name, and what it stands for; refuses what the key may not ask.
    """

    cards: Mapping[str, ModelCard]
    tuned_models: TunedModelRepository
    aliases: AliasRepository
    project_id: str
    check_name: Callable[[str, str], None]

    def choose(self, body: ExportBody) -> Choice:
        """Return what a request asks for.

        Raises:
            ModelNotFound: The project has no such model.
            PermissionDenied: A licence forbids it.
            InvalidRequest: The fields do not go together.
            CapabilityMissing: It cannot be made.
        """
        model, tuned = self._find(body.model, "model")
        base = tuned.base_model_id if tuned else model
        card = self.cards.get(base)
        if card is None:
            raise ModelNotFound(f"no model {body.model[:100]!r} can be exported", param="model")
        check_card(card)
        given = [self._adapter(name, card) for name in body.adapters]
        if body.adapter_mode == "merge":
            return Choice(card, _merged(model, tuned, given))
        if body.shrink is not None or card.task != "generate":
            raise CapabilityMissing(
                "adapters at run time need a base that generates text and is not shrunk",
                param="adapter_mode",
            )
        if tuned is not None and tuned.adapter_id is None:
            raise CapabilityMissing(f"{tuned.id} was tuned whole: it is no adapter", param="model")
        return Choice(card, card.id, _at_run_time([*([tuned] if tuned else []), *given]))

    def _find(self, name: str, param: str) -> tuple[str, TunedModel | None]:
        """Return the model behind a name, and what is known of it where it is a tuned one."""
        model = self._behind(name)
        self.check_name(name, model)
        found = None if model in self.cards else self.tuned_models.find(model)
        if found is None or found.project_id != self.project_id or found.deleted_at is not None:
            if model in self.cards:
                return model, None
            raise ModelNotFound(f"no model {name[:100]!r} can be exported", param=param)
        if found.state is not TunedState.PUBLISHED:
            raise ModelNotFound(f"{found.id} is {found.state.value}, not published", param=param)
        check_allows_export(found)
        return model, found

    def _behind(self, name: str) -> str:
        if name in self.cards or self.tuned_models.find(name) is not None:
            return name
        return next((a.model_id for a in self.aliases.list() if a.name == name), name)

    def _adapter(self, name: str, card: ModelCard) -> TunedModel:
        _, tuned = self._find(name, "adapters")
        if tuned is None or tuned.adapter_id is None or tuned.base_model_id != card.id:
            raise InvalidRequest(f"{name[:100]!r} is no adapter of {card.id}", param="adapters")
        return tuned


def _merged(model: str, tuned: TunedModel | None, given: list[TunedModel]) -> str:
    """Return the model whose weights the bundle has."""
    if len(given) + (tuned is not None) > 1:
        raise InvalidRequest(
            "adapter_mode merge takes one adapter; runtime takes several", param="adapters"
        )
    return given[0].id if given else model


def _at_run_time(chosen: list[TunedModel]) -> dict[str, str]:
    if not 0 < len(chosen) <= MAX_ADAPTERS:
        raise InvalidRequest(
            f"adapter_mode runtime takes 1 to {MAX_ADAPTERS} adapters", param="adapters"
        )
    found: dict[str, str] = {}
    for tuned in chosen:
        # The end of the public name: suffix, id, step.
        name = device_name("-".join(part for part in tuned.id.split(":")[3:] if part))
        if name.casefold() in {known.casefold() for known in found}:
            raise InvalidRequest(
                f"two adapters would be called {name!r} in the bundle", param="adapters"
            )
        found[name] = tuned.id
    return found
