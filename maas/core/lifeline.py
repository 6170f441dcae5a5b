"""A process that must not outlive its parent holds a lifeline: the parent's end of a pipe.

The parent starts the child with a pipe as standard input and writes nothing to it, or what the
child reads before it watches. When the parent dies, in whatever way, the kernel closes its end and
the child reads end-of-file. It needs no polling and no platform calls, and works for ``kill -9``.
"""

import os
import signal
import sys
import threading

LIFELINE_FLAG = "--lifeline"


def end_with_parent(*, with_group: bool = False) -> None:
    """Ask this process to stop (SIGTERM) as soon as its standard input closes.

    Args:
        with_group: The processes of its group too: those it started, where it leads one.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        if with_group:
            os.killpg(os.getpgrp(), signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
