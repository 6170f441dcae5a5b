"""A gateway that dies while it makes a project: run by the test of crashes, with four arguments.

``before``: dies when the change was made and is not committed. ``after``: when it is committed
and the client has not heard of it.
"""

import asyncio
import os
import sys
from pathlib import Path

from httpx import ASGITransport, AsyncClient

from maas.bootstrap import open_store
from maas.bootstrap.gateway import make_gateway
from maas.core.settings import Settings
from maas.store.projects import ProjectRepository

KILLED = 9


async def main(url: str, home: str, key: str, moment: str) -> None:
    settings = Settings.model_validate({"home": Path(home), "database_url": url})
    gateway = make_gateway(settings, open_store(settings))
    await gateway.start()
    if moment == "before":
        create = ProjectRepository.create

        def create_and_die(*given, **named):
            create(*given, **named)
            os._exit(KILLED)

        ProjectRepository.create = create_and_die
    transport = ASGITransport(app=gateway.asgi)
    async with AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post(
            "/v1/organization/projects",
            json={"name": "p"},
            headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "once"},
        )
    os._exit(KILLED if answer.status_code == 200 else 1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
