"""What a key is for: whose it is, what it may ask, from where and until when."""

import ipaddress
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from maas.core.errors import InvalidRequest

MAX_ITEMS = 100
# 3000-01-01: what is later cannot be shown as a date everywhere.
LATEST = 32_503_680_000.0


@dataclass(frozen=True)
class KeyTerms:
    """The terms a key is made on. Empty lists restrict nothing.

    Attributes:
        scopes: As in ``ApiKey``; left out where a user or a service account decides.
        models: Models it may ask, by public name.
        endpoints: Routes it may use, and what is below them.
        networks: CIDR networks it is accepted from.
        expires_at: Epoch seconds.
    """

    scopes: tuple[str, ...] = ("inference",)
    user_id: str | None = None
    service_account_id: str | None = None
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    expires_at: float | None = None

    def checked(self, now: float) -> "KeyTerms":
        """Return the terms as they are stored.

        Args:
            now: Epoch seconds.

        Raises:
            InvalidRequest: Something makes no sense; the message names it.
        """
        for name in ("models", "endpoints", "networks"):
            if len(getattr(self, name)) > MAX_ITEMS:
                raise InvalidRequest(f"{name}: at most {MAX_ITEMS}", param=name)
        if self.expires_at is not None and self.expires_at <= now:
            raise InvalidRequest("the key would be expired at once", param="expires_at")
        if self.expires_at is not None and self.expires_at > LATEST:
            raise InvalidRequest("a key expires before the year 3000, or never", param="expires_at")
        if self.user_id is not None and self.service_account_id is not None:
            raise InvalidRequest("a key is a user's or a service account's, not both")
        is_owned = self.user_id is not None or self.service_account_id is not None
        return replace(
            self,
            scopes=() if is_owned else self.scopes,
            endpoints=tuple(_endpoint(path) for path in self.endpoints),
            networks=tuple(_network(text) for text in self.networks),
        )


def loosened(own: KeyTerms, wanted: KeyTerms) -> str | None:
    """Return the first restriction of some terms that others do not have; none where they all do.

    Args:
        own: The terms that restrict.
        wanted: Others, ``checked``.
    """
    ends_at = math.inf if wanted.expires_at is None else wanted.expires_at
    holds = {
        "models": _all_within(wanted.models, own.models, operator.eq),
        "endpoints": _all_within(wanted.endpoints, own.endpoints, is_below),
        "networks": _all_within(wanted.networks, own.networks, _is_part),
        "expires_at": own.expires_at is None or ends_at <= own.expires_at,
    }
    return next((name for name, is_kept in holds.items() if not is_kept), None)


def is_below(route: str, path: str) -> bool:
    """Say whether a route is a path, or below it."""
    return route == path or route.startswith(f"{path}/")


def _all_within(
    wanted: Sequence[str], own: Sequence[str], is_within: Callable[[str, str], bool]
) -> bool:
    if not own:
        return True
    return bool(wanted) and all(any(is_within(item, mine) for mine in own) for item in wanted)


def _is_part(network: str, whole: str) -> bool:
    part, of = ipaddress.ip_network(network), ipaddress.ip_network(whole)
    if isinstance(part, ipaddress.IPv4Network):
        return isinstance(of, ipaddress.IPv4Network) and part.subnet_of(of)
    return isinstance(of, ipaddress.IPv6Network) and part.subnet_of(of)


def _endpoint(path: str) -> str:
    if not path.startswith("/v1/") or path != path.strip():
        raise InvalidRequest(
            f"endpoint {path!r}: want a route such as /v1/chat/completions", param="endpoints"
        )
    return path.rstrip("/")


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError as error:
        raise InvalidRequest(
            f"network {text!r}: want CIDR, such as 10.0.0.0/8 or 2001:db8::/32", param="networks"
        ) from error
