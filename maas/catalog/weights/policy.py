"""Which of a source's files are taken, and which are refused: pickles and code."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from maas.catalog.card import ModelCard
from maas.catalog.weights.files import SourceFile, check_name
from maas.core.errors import SourceUnreachable, WeightsCorrupt, WeightsForbidden

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_PLAIN = frozenset({".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja", ".tiktoken"})
# Other forms of the same weights that repositories carry beside the ones engines load.
_OTHER_FORMS = frozenset({"onnx", "openvino", "original", "coreml", "metal"})


def _is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    if _OTHER_FORMS & set(path.parts[:-1]) or path.name == "training_args.bin":
        return False
    parts = path.suffix.startswith(".part") and path.suffix[5:].isdigit()
    return parts or path.suffix in _PLAIN | PICKLES | {".py"}


def select_files(
    card: ModelCard, files: Sequence[SourceFile], *, allow_remote_code: bool, allow_pickle: bool
) -> list[SourceFile]:
    """Return the files to take.

    Pickles are left out where safetensors are there; code is left out unless it may run.

    Raises:
        WeightsForbidden: A name climbs out, or there are only pickles and nobody allowed them.
        SourceUnreachable: There is nothing to load.
    """
    for file in files:
        check_name(file.name)
    wanted = [file for file in files if _is_wanted(file.name)]
    if not (card.trust_remote_code and allow_remote_code):
        wanted = [file for file in wanted if not file.name.endswith(".py")]
    plain = [file for file in wanted if PurePosixPath(file.name).suffix not in PICKLES]
    if any(_is_weights(file.name) for file in plain):
        return plain
    if len(plain) == len(wanted):
        raise SourceUnreachable(f"model {card.id}: its source holds no weights")
    if not (card.allow_pickle and allow_pickle):
        mend = (
            "set MAAS_ALLOW_PICKLE=true if you trust their source"
            if card.allow_pickle
            else "find a safetensors form, or say allow_pickle: true in the card"
        )
        raise WeightsForbidden(
            f"model {card.id}: its weights are pickled, and a pickle can run any code; {mend}"
        )
    return wanted


def _is_weights(name: str) -> bool:
    suffix = PurePosixPath(name).suffix
    return suffix in {".safetensors", ".gguf"} or suffix.startswith(".part")


def check_config(card: ModelCard, folder: Path, *, allow_remote_code: bool) -> None:
    """Look into config files for code that would have to run.

    Raises:
        WeightsForbidden: ``auto_map`` names code, and card or operator does not allow it.
        WeightsCorrupt: A config is not JSON.
    """
    if card.trust_remote_code and allow_remote_code:
        return
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if not path.exists():
            continue
        try:
            config: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WeightsCorrupt(f"{path}: not JSON: {error}; fetch the model again") from error
        if isinstance(config, dict) and "auto_map" in config:
            who = "the card" if not card.trust_remote_code else "MAAS_ALLOW_REMOTE_CODE"
            raise WeightsForbidden(
                f"model {card.id}: {path.name} asks to run code that comes with the weights "
                f"(auto_map), and {who} does not allow it; read that code before you do"
            )
