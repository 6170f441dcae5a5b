"""What all resources of this API share on the wire: strict bodies, roles, restrictions of keys."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from maas.store.key_terms import KeyTerms
from maas.store.records import ApiKey, Role

# OpenAI's words for our roles: in an organisation, and in a project.
_ALIASES = {"reader": Role.VIEWER.value, "member": Role.DEVELOPER.value}


class Body(BaseModel):
    """A request's body: a field that is not known is refused, and a number that is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Deleted(BaseModel):
    """The answer to a deletion."""

    object: str
    id: str
    deleted: Literal[True] = True


Name = Annotated[str, Field(min_length=1, max_length=255)]
# Epoch seconds, to the year 9999: no database takes any number for a time.
Moment = Annotated[int, Field(ge=0, le=253_402_300_799)]


def _role(value: Any) -> Any:
    return _ALIASES.get(value, value) if isinstance(value, str) else value


WireRole = Annotated[Role, BeforeValidator(_role)]


def shown_role(role: Role, *, in_project: bool) -> str:
    """Return a role by OpenAI's name where it has one: reader, member."""
    if in_project:
        return "member" if role is Role.DEVELOPER else role.value
    return "reader" if role is Role.VIEWER else role.value


class Restrictions(Body):
    """Where a key is accepted, and for what. Empty lists restrict nothing; ours, not OpenAI's."""

    models: list[str] = []
    endpoints: list[str] = []
    networks: list[str] = []
    expires_in_seconds: Annotated[int | None, Field(strict=True, gt=0, le=10 * 365 * 86400)] = None

    def terms(self, now: float, scopes: tuple[str, ...] = ("inference",)) -> KeyTerms:
        """Return the terms of a key that is made now."""
        lifetime = self.expires_in_seconds
        return KeyTerms(
            scopes=scopes,
            models=tuple(self.models),
            endpoints=tuple(self.endpoints),
            networks=tuple(self.networks),
            expires_at=now + lifetime if lifetime is not None else None,
        )


def redacted(key: ApiKey) -> str:
    """Return how a key is shown: its public part."""
    return f"sk-maas-{key.id}-***"


def seconds(moment: float | None) -> int | None:
    """Return a moment in whole seconds."""
    return None if moment is None else int(moment)
