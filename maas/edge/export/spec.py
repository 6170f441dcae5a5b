"""What an export is asked for, and what it tells: read and written as JSON, light to import."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from maas.edge.runtime.bundle.manifest import ADAPTER_NAME

AdapterMode = Literal["merge", "runtime"]
Target = Literal["cpu", "cuda", "mobile"]
Precision = Literal["int4", "int8", "fp16"]
ShrinkMethod = Literal["prune", "low_rank", "both"]
BUNDLE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
# Nats a golden token may lie from the original: the answers stay the original's in kind.
MAX_KL_DIVERGENCE = 0.25


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class QualityDemand(_Frozen):
    """What a bundle must keep of the original."""

    min_score_percent: float = Field(default=80.0, ge=0, le=100)
    """Under this share of the original's task score the export is refused."""
    goal_percent: float = Field(default=98.0, ge=0, le=100)
    """What a bundle should keep: the search goes on for it while attempts are left; a bundle that
    keeps less is marked ``below_goal``."""
    max_kl_divergence: float | None = Field(default=None, gt=0)
    """Nats a token that it may lie from the original. Without one the search for settings aims at
    0.25 and takes the nearest it finds; with one, an export that lies further away is refused."""
    max_attempts: int = Field(default=4, ge=1, le=10)
    """Settings that are built and compared at most."""
    force: bool = False
    """Make it all the same, marked as forced."""

    @property
    def budget(self) -> float:
        """What the search for settings stays within, in nats a token."""
        return MAX_KL_DIVERGENCE if self.max_kl_divergence is None else self.max_kl_divergence


class ShrinkDemand(_Frozen):
    """What a model should lose before it is quantised."""

    target_parameters: int | None = Field(default=None, ge=1)
    """At most so many are left."""
    target_size_bytes: int | None = Field(default=None, ge=1)
    """The finished bundle takes at most so many."""
    method: ShrinkMethod = "prune"
    """``prune`` takes out blocks, then width, then attention heads; ``low_rank`` makes two thin
    layers of one; ``both`` prunes half of what must go."""
    recover_s: float = Field(default=300.0, ge=0)
    """Seconds of tuning towards the original afterwards."""

    @model_validator(mode="after")
    def _one_target(self) -> "ShrinkDemand":
        if (self.target_parameters is None) == (self.target_size_bytes is None):
            raise ValueError("name one of target_parameters and target_size_bytes")
        return self


class RuntimeAdapter(_Frozen):
    """A LoRA adapter that a bundle holds beside its base."""

    name: str = Field(pattern=ADAPTER_NAME)
    """What it is called on the device."""
    folder: Path
    """As PEFT wrote it."""
    lineage: dict[str, Any] = {}
    """Where it comes from, and its licence."""


class ExportSpec(_Frozen):
    """One export, resolved: everything its process needs."""

    model_id: str
    base_model_id: str
    model_dir: Path
    """Safetensors, configuration and tokenizer of the original."""
    adapter_dir: Path | None = None
    """A PEFT adapter that is merged into it."""
    adapters: tuple[RuntimeAdapter, ...] = ()
    """Adapters that stay what they are, and are chosen at run time."""
    target: Target = "cpu"
    precision: Precision = "int4"
    name: str
    """Of the bundle."""
    work_dir: Path
    out_path: Path
    signing_key: SecretStr = Field(exclude=True)
    """The private key, in hexadecimal; never in the JSON: the process is told it by a pipe."""
    task: Literal["generate", "embed"] = "generate"
    max_model_len: int = Field(ge=1)
    tool_call_parser: str | None = None
    licence: dict[str, Any]
    lineage: dict[str, Any] = {}
    """Base, data, job, adapter: what the tuned model's registry says."""
    quality: QualityDemand = QualityDemand()
    shrink: ShrinkDemand | None = None
    seed: int = 0
    num_threads: int = Field(default=0, ge=0)
    created_at: float


class Progress(_Frozen):
    """How far an export is."""

    phase: str
    percent: float = Field(ge=0, le=100)
    message: str = ""


class ExportResult(_Frozen):
    """What came of it."""

    bundle_path: Path
    bundle_id: str
    manifest: dict[str, Any]
