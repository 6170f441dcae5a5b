"""Lists as OpenAI pages them: ``after``, ``limit``, ``first_id``, ``last_id``, ``has_more``."""

from collections.abc import Sequence
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

from maas.store.pages import MAX_PAGE, Window

T = TypeVar("T", bound=BaseModel)


class ListPage(BaseModel, Generic[T]):
    """A part of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_of(items: Sequence[T], *, has_more: bool) -> ListPage[T]:
    """Return a page; items have an ``id``."""
    ids = [str(getattr(item, "id", "")) for item in items]
    return ListPage[T](
        data=list(items),
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=has_more,
    )


def _window(
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    order: Literal["asc", "desc"] = "asc",
) -> Window:
    return Window(after=after, limit=limit, is_newest_first=order == "desc")


WindowDep = Annotated[Window, Depends(_window)]
