"""The model that is trained: loaded, given an adapter, saved."""

import json
import logging
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from maas.core.errors import ConfigError
from maas.finetune.recipe import Recipe
from maas.finetune.train import attention
from maas.finetune.train.fused import speed_up, target_logprobs
from maas.finetune.train.packing import PackedRow
from maas.finetune.train.shards import Shards, gathered

log = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def training_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the processor multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    return torch.bfloat16 if _BF16_FLAGS & set(flags) else torch.float32


def choose_device() -> torch.device:
    """Return the accelerator of this worker, or the processor."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else (torch.device("cpu"))
    )


@dataclass(frozen=True)
class Predictions:
    """What a pass says of its targets, N of them.

    Attributes:
        logprobs: float32, shape (N,); of each target.
        is_likeliest: bool, shape (N,); whether it had the highest logit.
    """

    logprobs: torch.Tensor
    is_likeliest: torch.Tensor


class TrainedModel:
    """A base and what of it is trained.

    Args:
        model_dir: Prepared weights.
        recipe: What changes.
        device: Where it computes.
        seed: Of the adapter's first weights.
        base: Taken instead of what the folder holds, already on its device.
        shards: Places to split the weights over; none: this worker holds them all.
    """

    def __init__(
        self,
        model_dir: Path,
        recipe: Recipe,
        device: torch.device,
        seed: int,
        *,
        base: PreTrainedModel | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.device = device
        self.shards = shards
        self._name = model_dir.name
        self._recipe = recipe
        self.is_full = recipe.tuning == "full"
        self.dtype = training_dtype(device)
        torch.manual_seed(seed)
        # One layer at a time goes from main memory to where its part is.
        at_first = device if shards is None else torch.device("cpu")
        base = base or _load(model_dir, recipe, self.dtype, at_first)
        self.module: PreTrainedModel | PeftModel = base
        if not self.is_full:
            self.module = get_peft_model(
                base,
                LoraConfig(
                    task_type="CAUSAL_LM",
                    r=recipe.r,
                    lora_alpha=recipe.lora_alpha,
                    lora_dropout=recipe.lora_dropout,
                    target_modules=_targets(recipe, base),
                ),
                autocast_adapter_dtype=False,
            )
            speed_up(self.module)
        self._head = None if self.is_full else _plain_head(base)
        self._start: dict[str, torch.Tensor] | None = None
        if shards is not None:
            whole = () if self.is_full else tuple(self.trained().values())
            shards.split(base, base.base_model, whole)
            torch.nn.Module.to(self.module, device)
        self.module.train()

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters that are trained, by name, in a fixed order."""
        return {
            name: parameter
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }

    def predict(self, row: PackedRow) -> Predictions:
        """Run one row through the model; logits only where a target follows."""
        arguments: dict[str, Any] = {
            "input_ids": row.input_ids,
            "position_ids": row.position_ids,
            "use_cache": False,
            "row_lengths": row.lengths,
        }
        if self._head is not None:
            decoder, weight = self._head
            hidden = decoder(**arguments).last_hidden_state[0]
            hidden = hidden.index_select(0, row.predicting)
            return Predictions(*target_logprobs(hidden, weight, row.targets))
        output = self.module(**arguments, logits_to_keep=row.predicting)
        logits = output.logits[0].float()
        logprobs = -torch.nn.functional.cross_entropy(logits, row.targets, reduction="none")
        return Predictions(logprobs, logits.detach().argmax(-1) == row.targets)

    def begin_with(self, adapter_dir: Path) -> None:
        """Put on an adapter to go on from: before anything is trained.

        Raises:
            ConfigError: It changes other layers, or has another rank.
        """
        tensors = load_file(str(adapter_dir / ADAPTER_FILE))
        config = json.loads((adapter_dir / CONFIG_FILE).read_text(encoding="utf-8"))
        own = get_peft_model_state_dict(self.module)
        if {name: t.shape for name, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
            raise ConfigError("the adapter to go on from changes other layers than this recipe")
        factor = _scaling(config) / (self._recipe.lora_alpha / self._recipe.r)
        # Whatever it was scaled by, it changes here what it changed there.
        scaled = {n: t * factor if ".lora_B." in n else t for n, t in tensors.items()}
        set_peft_model_state_dict(self.module, scaled)
        self._start = {name: p.detach().clone() for name, p in self.trained().items()}

    @contextmanager
    def as_reference(self) -> Generator[None]:
        """Answer as the model did before training, for a while: what DPO compares with."""
        if not isinstance(self.module, PeftModel):
            raise ConfigError("method dpo needs an adapter: tune with lora")
        if self._start is None:
            with self.module.disable_adapter():
                yield
            return
        parameters = self.trained()
        now = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self._start[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = now[name]

    def enable_recomputation(self) -> None:
        """Keep no activations between layers: a third more work for much less memory."""
        if not self.is_full:
            # The embedding is frozen: without this no gradient would reach the first layer.
            self.module.enable_input_require_grads()
        self.module.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )

    @property
    def is_split(self) -> bool:
        """Whether what is trained is split over workers: then all must take part in saving."""
        return self.is_full and self.shards is not None

    def num_idle(self, num_passes: int) -> int:
        """Return how many passes this worker runs for nothing, after so many for something."""
        return 0 if self.shards is None else self.shards.num_idle(num_passes)

    def gather(self) -> dict[str, torch.Tensor] | None:
        """Return the whole of weights that are split; nothing where they are not."""
        return gathered(self.module) if self.is_split else None

    def save(
        self,
        folder: Path,
        masters: dict[str, torch.Tensor],
        weights: dict[str, torch.Tensor] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Write the adapter, or whole weights, as they are served.

        Args:
            folder: An empty folder.
            masters: The trained parameters in full precision, by name.
            weights: What ``gather`` returned.
            dtype: Of whole weights; an adapter is kept in float32.
        """
        if self.is_full:
            whole = self._whole(masters) if weights is None else weights
            state = {
                name: (t.detach().to(dtype) if t.is_floating_point() else t).contiguous()
                for name, t in whole.items()
            }
            self.module.save_pretrained(str(folder), state_dict=state, safe_serialization=True)
            return
        config = self.module.peft_config["default"]
        was_inference, config.inference_mode = config.inference_mode, True
        config.save_pretrained(str(folder))
        config.inference_mode = was_inference
        state = get_peft_model_state_dict(self.module, state_dict=masters)
        tensors = {name: tensor.detach().float().contiguous() for name, tensor in state.items()}
        path = folder / CONFIG_FILE
        written = json.loads(path.read_text(encoding="utf-8"))
        # PEFT writes a set, in each process in another order, and of some models whole paths.
        modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors}
        written["target_modules"] = sorted(modules)
        # A path of this machine means nothing where it is served.
        written["base_model_name_or_path"] = self._name
        path.write_text(json.dumps(written, indent=2, sort_keys=True), encoding="utf-8")
        save_file(tensors, str(folder / ADAPTER_FILE), metadata={"format": "pt"})

    def _whole(self, masters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return all weights, what is trained in full precision; shared ones are there once."""
        every = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        shared = every - {name for name, _ in self.module.named_parameters()}
        state: dict[str, torch.Tensor] = self.module.state_dict()
        return {
            name: masters.get(name, tensor) for name, tensor in state.items() if name not in shared
        }


def _scaling(config: dict[str, Any]) -> float:
    """Return what an adapter's product is multiplied by (Kalajdzievski 2023: the root of r)."""
    r = float(config["r"])
    return float(config["lora_alpha"]) / (math.sqrt(r) if config.get("use_rslora") else r)


@torch.no_grad()
def _plain_head(base: PreTrainedModel) -> tuple[torch.nn.Module, torch.Tensor] | None:
    """Return decoder and output layer, if logits are what the layer makes and nothing more."""
    decoder, head = base.base_model, base.get_output_embeddings()
    if decoder is base or type(head) is not torch.nn.Linear or head.bias is not None:
        return None
    ids = torch.tensor([[1, 2, 3, 4]], device=head.weight.device)
    arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False, "row_lengths": (4,)}
    logits = base(**arguments).logits
    is_plain = torch.equal(head(decoder(**arguments).last_hidden_state), logits)
    return (decoder, head.weight) if is_plain else None


def _targets(recipe: Recipe, base: PreTrainedModel) -> list[str]:
    """Return the last names of the layers that get an adapter: what engines ask for."""
    if not isinstance(recipe.target_modules, str):
        return list(recipe.target_modules)
    head = base.get_output_embeddings()
    names = {
        name.rsplit(".", 1)[-1]
        for name, part in base.named_modules()
        # 4-bit layers are of a class made from this one.
        if isinstance(part, torch.nn.Linear) and part is not head
    }
    return sorted(names)


def _load(
    model_dir: Path, recipe: Recipe, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": False,
        "attn_implementation": attention.NAME,
    }
    if recipe.tuning == "qlora":
        arguments |= _in_four_bits(device)
    base = AutoModelForCausalLM.from_pretrained(str(model_dir), **arguments)
    base.config.use_cache = False
    if recipe.tuning != "qlora":
        torch.nn.Module.to(base, device)
    return base


def _in_four_bits(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        raise ConfigError("recipe qlora needs a GPU: its 4-bit weights are computed there only")
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        "device_map": {"": device.index or 0},
    }
