"""What an adapter folder may hold, checked before anything loads it; and its content's id.

A LoRA adapter (Hu et al. 2021) is two files as PEFT writes them: ``adapter_config.json`` and
``adapter_model.safetensors``. They come from a trainer of ours or from somebody else, so nothing
in them is believed: names, shapes and numbers are compared with the base model's own weights.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas.core.errors import AdapterRefused
from maas.finetune.base_modules import LINEAR_MODULES, BaseModules
from maas.finetune.safetensors_header import (
    TensorEntry,
    chunks_of,
    is_finite,
    parse_object,
    read_header,
)

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
# The configuration first: a reader that finds the weights finds both.
ADAPTER_NAMES = (CONFIG_NAME, WEIGHTS_NAME)
# Read by people only; it is not kept.
IGNORED_NAMES = frozenset({"README.md"})
MAX_CONFIG_BYTES = 256 * 2**10
MAX_WEIGHTS_BYTES = 4 * 2**30
MAX_RANK = 512
MAX_ALPHA = 1e6
_DTYPES = ("F32", "F16", "BF16")
_PREFIX = "base_model.model."
_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})

# Fields of PEFT's LoraConfig that say where an adapter came from or how it was trained.
_NEUTRAL = frozenset(
    {
        *("base_model_name_or_path", "revision", "peft_version", "inference_mode", "lora_dropout"),
        *("qalora_group_size", "megatron_core", "runtime_config", "loftq_config"),
        *("eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying"),
    }
)
_READ = frozenset(
    {
        *("peft_type", "task_type", "r", "lora_alpha", "target_modules", "use_rslora", "bias"),
        *("init_lora_weights",),
    }
)
# Starts that change the base's own weights: an adapter of one is wrong on the plain base.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_WHY = {
    "modules_to_save": "whole copies of modules are not served; tune with modules_to_save=None",
    "use_dora": "DoRA is not served; tune with use_dora=False",
    "rank_pattern": "one rank for all modules is served; tune without rank_pattern",
    "alpha_pattern": "one alpha for all modules is served; tune without alpha_pattern",
    "auto_map": "an adapter never brings code; take auto_map out",
    "lora_bias": "biases are not served; tune with lora_bias=False",
    "trainable_token_indices": "new tokens are not served; tune without trainable_token_indices",
    "layer_replication": "replicated layers are not served; tune without layer_replication",
}


@dataclass(frozen=True)
class AdapterFacts:
    """What was found in an adapter that passed.

    Attributes:
        id: SHA-256 of its content: what it computes, not how it was written down.
        r: Its rank.
        config: The configuration that is kept, with only what is needed to apply it.
    """

    id: str
    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    num_tensors: int
    size_bytes: int
    config: Mapping[str, Any]


def check_adapter(
    folder: Path, base: BaseModules | None, *, max_rank: int = MAX_RANK
) -> AdapterFacts:
    """Check an adapter folder.

    Args:
        folder: What was brought.
        base: Modules of the base model; none where its weights are not here, so that names and
            shapes are checked by those who have them.
        max_rank: Largest rank that engines of the base take.

    Raises:
        AdapterRefused: It cannot be served; the message says what, where and how to mend it.
    """
    _check_names(folder)
    return read_adapter(folder, base, max_rank=max_rank)


def describe_adapter(folder: Path) -> AdapterFacts:
    """Return the facts of an adapter that our own trainer wrote, beside files of its own."""
    return read_adapter(folder, None)


def content_hash(folder: Path) -> str:
    """Return the id of an adapter that our own trainer wrote."""
    return describe_adapter(folder).id


def read_adapter(
    folder: Path, base: BaseModules | None, *, max_rank: int = MAX_RANK
) -> AdapterFacts:
    """Check an adapter's two files, whatever else is in the folder.

    Raises:
        AdapterRefused: It cannot be served.
    """
    config = _read_config(folder / CONFIG_NAME)
    wanted = _check_config(config, max_rank)
    path = folder / WEIGHTS_NAME
    tensors = read_header(path)
    _check_tensors(tensors, wanted, base)
    return AdapterFacts(
        id=_content_id(path, tensors, wanted),
        r=wanted["r"],
        lora_alpha=wanted["lora_alpha"],
        target_modules=tuple(wanted["target_modules"]),
        num_tensors=len(tensors),
        size_bytes=path.stat().st_size,
        config=wanted,
    )


def keep_adapter(folder: Path, target: Path, base_model_id: str, facts: AdapterFacts) -> None:
    """Copy a checked adapter as it is stored: its weights, and what its config must say.

    Args:
        folder: What was checked.
        target: New folder.
        base_model_id: Stands in the config in place of a path on somebody's machine.
        facts: Of the check.
    """
    target.mkdir(parents=True)
    config = {**facts.config, "base_model_name_or_path": base_model_id, "inference_mode": True}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (target / CONFIG_NAME).write_text(text, encoding="utf-8")
    with (folder / WEIGHTS_NAME).open("rb") as source, (target / WEIGHTS_NAME).open("wb") as kept:
        while chunk := source.read(2**20):
            kept.write(chunk)
        kept.flush()
        os.fsync(kept.fileno())


def _check_names(folder: Path) -> None:
    """Check which files there are, before any is opened."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise AdapterRefused(f"no folder to read an adapter from: {error.strerror}") from error
    for entry in entries:
        name = entry.name
        if Path(name).suffix.lower() in _PICKLES:
            raise AdapterRefused(
                f"{name}: pickles can run code and are refused; save the adapter with "
                "safe_serialization=True and bring adapter_model.safetensors alone"
            )
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise AdapterRefused(f"{name!r}: want plain files only, no links and no folders")
        if name not in {CONFIG_NAME, WEIGHTS_NAME, *IGNORED_NAMES}:
            raise AdapterRefused(
                f"{name!r} is not part of an adapter; bring {CONFIG_NAME} and {WEIGHTS_NAME} "
                "alone (tokenizer and chat template are the base's)"
            )
    sizes = {entry.name: entry.stat().st_size for entry in entries}
    for name, most in ((CONFIG_NAME, MAX_CONFIG_BYTES), (WEIGHTS_NAME, MAX_WEIGHTS_BYTES)):
        if name not in sizes:
            raise AdapterRefused(f"{name} is missing; PEFT's save_pretrained writes it")
        if sizes[name] > most:
            raise AdapterRefused(f"{name} has {sizes[name]} bytes; want at most {most}")


def _read_config(path: Path) -> dict[str, Any]:
    return parse_object(path.read_bytes(), where=CONFIG_NAME)


def _check_config(config: Mapping[str, Any], max_rank: int) -> dict[str, Any]:
    """Return the part of a config that says how the adapter is applied, in one way of writing."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterRefused(f"{CONFIG_NAME}: peft_type {str(kind)[:50]!r}; only LORA is served")
    for name, value in config.items():
        if name in _NEUTRAL or name in _READ or (name != "auto_map" and not value):
            continue
        why = _WHY.get(name, "it changes what an adapter computes, or is not known here")
        raise AdapterRefused(f"{CONFIG_NAME}: {name[:100]}: {why}", param=name[:100])
    # Compared, not looked up: a value may be anything that JSON can say.
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterRefused(f"{CONFIG_NAME}: task_type must be CAUSAL_LM")
    if config.get("bias", "none") != "none":
        raise AdapterRefused(f"{CONFIG_NAME}: biases are not served; tune with bias='none'")
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in _PLAIN_STARTS:
        raise AdapterRefused(
            f"{CONFIG_NAME}: init_lora_weights {str(start)[:50]!r} changes the base's own weights; "
            "convert the adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    if type(config.get("use_rslora", False)) is not bool:
        raise AdapterRefused(f"{CONFIG_NAME}: use_rslora must be true or false")
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "r": _rank(config, max_rank),
        "lora_alpha": _alpha(config),
        "target_modules": _targets(config),
        "use_rslora": config.get("use_rslora", False),
    }


def _rank(config: Mapping[str, Any], max_rank: int) -> int:
    r = config.get("r")
    if type(r) is not int or not 1 <= r <= MAX_RANK:
        raise AdapterRefused(f"{CONFIG_NAME}: r must be a whole number from 1 to {MAX_RANK}")
    if r > max_rank:
        raise AdapterRefused(
            f"{CONFIG_NAME}: r is {r} and engines of this base take up to {max_rank}; tune with "
            f"r={max_rank} or less, or deploy the base with -o max_lora_rank={_next_rank(r)}"
        )
    return r


def _next_rank(r: int) -> int:
    # Ranks that vLLM sets buffers aside for.
    return next(rank for rank in (1, 8, 16, 32, 64, 128, 256, 320, 512) if rank >= r)


def _alpha(config: Mapping[str, Any]) -> float:
    alpha = config.get("lora_alpha")
    # A bool is an int to Python; infinity is over the limit and what is no number under none.
    if not isinstance(alpha, bool) and isinstance(alpha, (int, float)) and 0 < alpha <= MAX_ALPHA:
        return float(alpha)
    raise AdapterRefused(f"{CONFIG_NAME}: lora_alpha must be a number over 0")


def _targets(config: Mapping[str, Any]) -> list[str]:
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise AdapterRefused(f"{CONFIG_NAME}: target_modules must be a list of module names")
    for name in targets:
        if not isinstance(name, str) or name not in LINEAR_MODULES:
            raise AdapterRefused(
                f"{CONFIG_NAME}: target_modules: {str(name)[:100]!r} is no linear layer of a "
                "transformer block, and only those are served"
            )
    return sorted(set(targets))


def _check_tensors(
    tensors: Mapping[str, TensorEntry], config: Mapping[str, Any], base: BaseModules | None
) -> None:
    """Compare names and shapes with the config and with the base."""
    pairs: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in tensors.items():
        module, part = _split(name)
        if module.rpartition(".")[2] not in config["target_modules"]:
            raise AdapterRefused(f"{WEIGHTS_NAME}: {name[:200]!r} is none of target_modules")
        if entry.dtype not in _DTYPES:
            raise AdapterRefused(f"{WEIGHTS_NAME}: {name[:200]!r} is {entry.dtype}; want float")
        pairs.setdefault(module, {})[part] = entry
    if not pairs:
        raise AdapterRefused(f"{WEIGHTS_NAME}: there is no tensor in it")
    for module, pair in pairs.items():
        if len(pair) != 2:
            raise AdapterRefused(f"{WEIGHTS_NAME}: {module[:200]!r} lacks lora_A or lora_B")
        shapes = (pair["A"].shape, pair["B"].shape)
        r = config["r"]
        is_pair = len(shapes[0]) == len(shapes[1]) == 2
        if not is_pair or shapes[0][0] != r or shapes[1][1] != r:
            raise AdapterRefused(
                f"{WEIGHTS_NAME}: {module[:200]!r}: shapes {shapes[0]} and {shapes[1]}; want "
                f"({r}, in) and (out, {r}) as r is {r}"
            )
        if base is not None:
            base.check(module, num_out=shapes[1][0], num_in=shapes[0][1])
    unused = set(config["target_modules"]) - {module.rpartition(".")[2] for module in pairs}
    if unused:
        raise AdapterRefused(
            f"{WEIGHTS_NAME}: nothing for {', '.join(sorted(unused))}, which target_modules names"
        )


def _split(name: str) -> tuple[str, str]:
    """Return the module and ``A`` or ``B`` of a tensor's name."""
    for part in ("A", "B"):
        suffix = f".lora_{part}.weight"
        if name.startswith(_PREFIX) and name.endswith(suffix):
            return name[len(_PREFIX) : -len(suffix)], part
    raise AdapterRefused(
        f"{WEIGHTS_NAME}: {name[:200]!r} is no LoRA tensor; want "
        f"{_PREFIX}<module>.lora_A.weight and lora_B.weight"
    )


def _content_id(path: Path, tensors: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> str:
    """Hash what an adapter computes; every number is looked at on the way."""
    digest = hashlib.sha256(b"maas-adapter-1\0")
    digest.update(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    with path.open("rb") as file:
        for name in sorted(tensors):
            entry = tensors[name]
            head = json.dumps([name, entry.dtype, list(entry.shape)], separators=(",", ":"))
            digest.update(b"\0" + head.encode() + b"\0")
            for chunk in chunks_of(file, entry):
                if not is_finite(chunk, entry.dtype):
                    raise AdapterRefused(
                        f"{WEIGHTS_NAME}: {name[:200]!r} has a number that is infinite or none"
                    )
                digest.update(chunk)
    return digest.hexdigest()
