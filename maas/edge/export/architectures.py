"""Which decoders can be exported: those whose graph was compared with the original's, by a test.

onnxruntime-genai's builder knows more names than it builds rightly: an OLMo of its making is
another model, a Mistral has no window, and what it does not read of a configuration it passes over.
Light to import: what cannot be made is refused where it is asked for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas.core.errors import CapabilityMissing

_PARAM = "model"


@dataclass(frozen=True)
class _Proven:
    """What of an architecture's configurations is built rightly.

    Attributes:
        rope_types: Ways to scale rotary positions.
        windows: Whether layers that see a window only are built so.
    """

    rope_types: frozenset[str] = frozenset({"default"})
    windows: bool = False


_DECODERS: Mapping[str, _Proven] = {
    "Gemma3ForCausalLM": _Proven(windows=True),
    "GemmaForCausalLM": _Proven(),
    "GraniteForCausalLM": _Proven(),
    "LlamaForCausalLM": _Proven(frozenset({"default", "llama3"})),
    "Qwen2ForCausalLM": _Proven(windows=True),
    "Qwen3ForCausalLM": _Proven(windows=True),
}
PROVEN_ARCHITECTURES = tuple(_DECODERS)


def is_proven(architecture: str) -> bool:
    """Say whether decoders of this class can be exported, and run on the onnx engine."""
    return architecture in _DECODERS


def check_architecture(architecture: str, model_id: str) -> None:
    """Refuse a decoder whose class is not proven.

    Args:
        architecture: Class name in its ``config.json``; a card has it.
        model_id: For the message.

    Raises:
        CapabilityMissing: The message names what can be exported.
    """
    if not is_proven(architecture):
        raise CapabilityMissing(
            f"{model_id}: no ONNX form is made of {architecture[:100]}; there is one of "
            f"{', '.join(PROVEN_ARCHITECTURES)}",
            param=_PARAM,
        )


def check_weights(model_dir: Path, model_id: str) -> None:
    """Refuse weights whose configuration would not be built as it says, before they are loaded.

    Args:
        model_dir: Of a decoder, with its ``config.json``.
        model_id: For the message.

    Raises:
        CapabilityMissing: Its class, its rotary positions or its windows are not proven.
    """
    path = model_dir / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        (architecture,) = config["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CapabilityMissing(f"{model_id}: {path} names no class: {error}", param=_PARAM) from (
            error
        )
    check_architecture(str(architecture), model_id)
    proven = _DECODERS[architecture]
    for rope_type in _rope_types(config):
        if rope_type not in proven.rope_types:
            raise CapabilityMissing(
                f"{model_id}: no ONNX form is made of {architecture} with rotary positions of "
                f"type {rope_type[:100]!r}",
                param=_PARAM,
            )
    if config.get("sliding_window") and not proven.windows:
        raise CapabilityMissing(
            f"{model_id}: no ONNX form is made of {architecture} with a sliding window",
            param=_PARAM,
        )


def _rope_types(config: Mapping[str, Any]) -> list[str]:
    """Return the kinds of rotary positions, as transformers 5 writes them and as 4 did."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    parts = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]
    return [str(part.get("rope_type") or part.get("type") or "default") for part in parts]
