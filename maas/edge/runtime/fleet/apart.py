"""Work that blocks, in a thread that nobody waits for when the process ends."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


async def run_apart(work: Callable[[], _Result]) -> _Result:
    """Return what work gives. Unlike in a pool's thread, a reading that hangs keeps nothing up."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    done: Future[_Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            done.set_exception(error)
        # The loop is closed where the process ends.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(over.set)

    threading.Thread(target=run, name="apart", daemon=True).start()
    await over.wait()
    return done.result()
