"""``GET /v1/models``: what can be asked."""

from typing import Literal

from pydantic import BaseModel


class Model(BaseModel):
    """One model. ``root`` is what an alias stands for, ``parent`` what a tuned model grew from."""

    id: str
    created: int
    owned_by: str
    root: str
    parent: str | None = None
    object: Literal["model"] = "model"


class ModelList(BaseModel):
    """All models of the caller."""

    data: list[Model]
    object: Literal["list"] = "list"


class DeletedModel(BaseModel):
    """A tuned model that is no more."""

    id: str
    deleted: bool = True
    object: Literal["model"] = "model"
