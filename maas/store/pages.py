"""Reading a long list page by page, with the last row of one page as the cursor of the next."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from maas.core.errors import InvalidRequest

T = TypeVar("T")
MAX_PAGE = 100


@dataclass(frozen=True)
class Page(Generic[T]):
    """Part of a list.

    Attributes:
        has_more: Whether the list goes on after it.
    """

    items: tuple[T, ...]
    has_more: bool


@dataclass(frozen=True)
class Window:
    """Which part of a list is wanted.

    Attributes:
        after: Id of the last row that was seen; none begins at the start.
        limit: Most rows.
        is_newest_first: The order of the whole list.
    """

    after: str | None = None
    limit: int = 20
    is_newest_first: bool = False


def read_page(
    session: Session,
    statement: Select[T],
    *,
    order: tuple[InstrumentedAttribute[float], InstrumentedAttribute[str]],
    window: Window,
) -> Page[T]:
    """Return a part of what a statement selects.

    Args:
        session: To read in.
        statement: All of the list, in no order.
        order: Time and id of a row, which order the list.
        window: The part that is wanted.

    Raises:
        InvalidRequest: ``after`` is no row of this list.
    """
    at, row_id = order
    if window.after is not None:
        last: Any = session.scalars(statement.where(row_id == window.after)).one_or_none()
        if last is None:
            raise InvalidRequest(f"after: {window.after!r} is not in this list", param="after")
        here, there = tuple_(at, row_id), (getattr(last, at.key), getattr(last, row_id.key))
        statement = statement.where(here < there if window.is_newest_first else here > there)
    ordered = (at.desc(), row_id.desc()) if window.is_newest_first else (at, row_id)
    rows = session.scalars(statement.order_by(*ordered).limit(window.limit + 1)).all()
    return Page(tuple(rows[: window.limit]), len(rows) > window.limit)
