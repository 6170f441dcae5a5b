"""A tenant of a gateway, what it asks and what that costs."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

import httpx
from sqlalchemy import select

from maas.core.ids import new_id
from maas.ledger.caps import MINUTE_S
from maas.store.ledger_tables import JournalRow
from maas.store.limits import LimitKey
from maas.store.records import LimitScope

# A thousandth of a unit each token. The fake engine counts 5 in, 7 out; of a prompt that comes as
# tokens, as many are reserved.
PRICE = Decimal(1000)
COST = Decimal("0.012")
ASK = {"model": "tiny", "prompt": [1, 2, 3, 4, 5], "max_tokens": 7}


class Tenant:
    """A project of its own with one key."""

    def __init__(self, gateway) -> None:
        self.gateway = gateway
        store = gateway.store
        organization = store.tenancy.organizations.find("default")
        self.project = store.tenancy.projects.create(organization.id, new_id("test"))
        _, self.key = store.keys.create(project_id=self.project.id, name="k")
        self.client = httpx.Client(
            base_url=gateway.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=30
        )
        gateway.wait_seen()

    def limit(self, **numbers) -> None:
        """Set limits; what follows has most of a minute before it."""
        left_s = MINUTE_S - self.gateway.store.clock.now() % MINUTE_S
        time.sleep(left_s if left_s < 8 and any("minute" in name for name in numbers) else 0)
        key = LimitKey(LimitScope.PROJECT, self.project.id)
        self.gateway.store.tenancy.limits.set(key, **numbers)
        self.gateway.wait_seen()

    def ask(self, **fields) -> httpx.Response:
        return self.client.post("/v1/completions", json={**ASK, **fields})

    def charges(self, count: int) -> list[JournalRow]:
        """Return the project's charges, once there are so many."""
        deadline = time.monotonic() + 5
        while True:
            with self.gateway.store.database.read() as session:
                rows = session.scalars(
                    select(JournalRow)
                    .where(JournalRow.project_id == self.project.id)
                    .order_by(JournalRow.at)
                ).all()
            if len(rows) >= count or time.monotonic() > deadline:
                assert len(rows) == count
                return list(rows)
            time.sleep(0.05)


@contextmanager
def new_tenant(gateway) -> Iterator[Tenant]:
    tenant = Tenant(gateway)
    with tenant.client:
        yield tenant


async def race(tenant: Tenant, count: int, **fields) -> list[int]:
    limits = httpx.Limits(max_connections=200)
    headers = {"Authorization": f"Bearer {tenant.key}"}
    async with httpx.AsyncClient(
        base_url=tenant.gateway.url, headers=headers, timeout=60, limits=limits
    ) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/completions", json={**ASK, **fields}) for _ in range(count))
        )
    return [answer.status_code for answer in answers]
