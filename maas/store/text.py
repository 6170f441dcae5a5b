"""Text as both databases take it: SQLite would store anything, PostgreSQL refuses some of it."""

from sqlalchemy import Dialect, String
from sqlalchemy.types import TypeDecorator

from maas.core.errors import InvalidRequest
from maas.core.names import is_steering


def as_text(value: str) -> str:
    """Return what can be stored of a value that nobody checked, such as an engine's last words."""
    return value.replace("\0", "").encode(errors="replace").decode()


def as_name(value: str, param: str = "name") -> str:
    """Return what something may be called.

    Raises:
        InvalidRequest: It is empty or blank, or holds what would steer who reads it: control
            characters (a terminal obeys them), ends of lines, changes of direction.
    """
    if not value.strip():
        raise InvalidRequest(f"{param} is empty", param=param)
    if is_steering(value):
        raise InvalidRequest(f"{param} {value[:40]!r} holds control characters", param=param)
    return value


class ShortText(TypeDecorator[str]):
    """A string of bounded length that every database stores and hands back the same.

    Args:
        length: Most characters.
    """

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return the value as it is.

        Raises:
            InvalidRequest: It is too long, or holds what is no text (NUL, half a character).
        """
        if value is None:
            return None
        if len(value) > self.length:
            raise InvalidRequest(
                f"{value[:40]!r}... has {len(value)} characters; at most {self.length} are stored"
            )
        if value != as_text(value):
            raise InvalidRequest(f"{value[:40]!r} holds characters that are no text")
        return value
