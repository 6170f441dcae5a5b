"""A stand-in engine with vLLM's process shape: a server, a core it starts, a worker of that.

``python tree_engine.py PORT MODE``. The core leaves the session, as daemons do. Modes:
``normal``, ``stubborn`` (ignores SIGTERM), ``crash`` (explains itself and exits), ``chatty``
(writes a lot), ``deaf`` (runs but never listens).
"""

import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"vllm:num_requests_running 0.0\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def sleep_for_ever() -> None:
    while True:
        time.sleep(60)


def start_core() -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            sleep_for_ever()
        sleep_for_ever()


def main() -> None:
    port, mode = int(sys.argv[1]), sys.argv[2]
    if mode == "crash":
        write("INFO starting")
        write("ValueError: no such architecture: Foo")
        write("RuntimeError: Engine core initialization failed. See root cause above.")
        sys.exit(3)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "chatty":
        # More than a pipe holds: however late its reader is, it reads more than once.
        for number in range(12_000):
            write(f"line {number:06d}")
    start_core()
    if mode == "deaf":
        sleep_for_ever()
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
