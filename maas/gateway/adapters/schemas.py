"""Adapters on the wire. Not in OpenAI's API: nobody brings adapters there."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from maas.store.adapters import Adapter, TunedModel, TunedState

_STATUS: dict[TunedState, Literal["loading", "ready", "refused"]] = {
    TunedState.CANDIDATE: "loading",
    TunedState.PUBLISHED: "ready",
    TunedState.REFUSED: "refused",
}


class AdapterBody(BaseModel):
    """A wish for a tuned model of an adapter that is uploaded already."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    config_file: str
    weights_file: str
    suffix: str | None = None


class AdapterObject(BaseModel):
    """A tuned model and its adapter.

    ``status`` is ``loading`` until an engine of the base holds it; ``problem`` says why one could
    not when it last tried.
    """

    object: Literal["adapter"] = "adapter"
    id: str
    model: str
    created_at: int
    status: Literal["loading", "ready", "refused"]
    problem: str | None
    adapter_sha256: str
    r: int
    target_modules: list[str]
    bytes: int
    fine_tuning_job_id: str | None
    lineage: Mapping[str, Any]
    licence: Mapping[str, Any]
    receipt: Mapping[str, Any] | None


def shown(model: TunedModel, adapter: Adapter) -> AdapterObject:
    """Return a tuned model on the wire."""
    return AdapterObject(
        id=model.id,
        model=model.base_model_id,
        created_at=int(model.created_at),
        status=_STATUS[model.state],
        problem=adapter.problem,
        adapter_sha256=adapter.id,
        r=adapter.r,
        target_modules=list(adapter.target_modules),
        bytes=adapter.size_bytes,
        fine_tuning_job_id=model.job_id,
        lineage=model.lineage,
        licence=model.licence,
        receipt=model.receipt,
    )
