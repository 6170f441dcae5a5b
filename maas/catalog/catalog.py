"""The catalogue: every card of a folder, checked when it is read."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from maas.catalog.card import ModelCard
from maas.core.errors import ConfigError, ModelNotFound


class Catalog(Mapping[str, ModelCard]):
    """Model cards by id."""

    def __init__(self, cards: Mapping[str, ModelCard]) -> None:
        self._cards = dict(cards)

    def __getitem__(self, model_id: str) -> ModelCard:
        return self._cards[model_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)

    def get_card(self, model_id: str) -> ModelCard:
        """Return one card.

        Raises:
            ModelNotFound: There is none; the message lists those there are.
        """
        card = self._cards.get(model_id)
        if card is None:
            names = ", ".join(sorted(self._cards)) or "none"
            raise ModelNotFound(f"no model card has the id {model_id!r}; there are: {names}")
        return card


def _read_card(path: Path) -> ModelCard:
    try:
        fields: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark is not None else ""
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}:{where} not valid YAML: {why}", file=str(path)) from error
    try:
        return ModelCard.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(the whole card)"
        raise ConfigError(
            f"{path}: field {field}: {first['msg']}; docs/models.md describes every field",
            file=str(path),
            param=field,
        ) from error


def load_catalog(folder: Path) -> Catalog:
    """Read every ``*.yaml`` of a folder.

    Raises:
        ConfigError: A card is wrong (the message names file and field), an id occurs twice,
            or the folder is missing.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of model cards; set MAAS_MODELS_DIR")
    cards: dict[str, ModelCard] = {}
    for path in sorted(folder.glob("*.yaml")):
        card = _read_card(path)
        if card.id in cards:
            raise ConfigError(f"{path}: the id {card.id!r} occurs twice", file=str(path))
        cards[card.id] = card
    return Catalog(cards)
