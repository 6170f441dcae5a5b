"""What of the catalogue can be exported, and how: asked before anything is fetched."""

from maas.catalog.card import ModelCard
from maas.core.errors import CapabilityMissing, PermissionDenied
from maas.edge.export.architectures import check_architecture
from maas.edge.export.spec import Precision, QualityDemand

# Of the proof of answers: embeddings are compared otherwise, and made in one way only.
_OF_ANSWERS = ("max_kl_divergence", "max_attempts", "goal_percent")


def check_card(card: ModelCard) -> None:
    """Refuse a model that must not, or cannot, be exported.

    Raises:
        PermissionDenied: Its licence forbids it.
        CapabilityMissing: Nobody has proved that models of its class are built rightly.
    """
    if not card.licence.allows_export:
        raise PermissionDenied(
            f"the licence of {card.id} ({card.licence.name}) does not allow its export",
            param="model",
        )
    if card.task == "generate":
        check_architecture(card.architecture, card.id)


def check_embedding(model_id: str, precision: Precision, quality: QualityDemand) -> None:
    """Refuse what is asked of a bundle of embeddings and would be passed over.

    Raises:
        CapabilityMissing: The message names the field.
    """
    if precision == "fp16":
        raise CapabilityMissing(
            f"precision fp16: {model_id} makes embeddings; take int8 or int4", param="precision"
        )
    for name in _OF_ANSWERS:
        if getattr(quality, name) != QualityDemand.model_fields[name].default:
            raise CapabilityMissing(
                f"{name}: {model_id} makes embeddings; of those min_score_percent is looked at",
                param=f"quality.{name}",
            )
