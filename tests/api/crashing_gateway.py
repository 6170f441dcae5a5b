"""A gateway that dies while it answers: run by the tests of crashes, with four arguments.

It makes a project. ``before``: dies when the change was made and is not committed. ``after``: when
it is committed and the client has not heard of it. Or it asks a model. ``charged``: dies when the
answer is charged and is not kept.
"""

import asyncio
import os
import sys
from pathlib import Path

from httpx import ASGITransport, AsyncClient

from maas.bootstrap import open_store
from maas.bootstrap.gateway import make_gateway
from maas.core.settings import Settings
from maas.gateway.idempotent_inference import IdempotentInference
from maas.store.projects import ProjectRepository
from tests.api.tenant import ASK

KILLED = 9
MAKE = "/v1/organization/projects", {"name": "p"}
ASKED = "/v1/completions", ASK


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
    if moment == "charged":
        IdempotentInference._kept = lambda *_: os._exit(KILLED)
    path, body = ASKED if moment == "charged" else MAKE
    transport = ASGITransport(app=gateway.asgi)
    async with AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post(
            path,
            json=body,
            headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "once"},
        )
    os._exit(KILLED if answer.status_code == 200 else 1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
