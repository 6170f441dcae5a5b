"""``python -m maas.edge.runtime.server FOLDER``: how the platform starts the onnx engine."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from maas.core.errors import MaasError
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.server.serve import Address, open_served, serve


def main() -> int:
    """Serve one folder; the exit code."""
    defaults = EngineOptions()
    parser = argparse.ArgumentParser(prog="maas.edge.runtime.server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--threads", type=int, default=defaults.num_threads)
    parser.add_argument("--max-num-seqs", type=int, default=defaults.max_num_seqs)
    parser.add_argument("--max-model-len", type=int, default=defaults.max_model_len)
    parser.add_argument("--kv-cache-bytes", type=int, default=defaults.kv_cache_bytes)
    parser.add_argument("--prefix-cache-bytes", type=int, default=defaults.prefix_cache_bytes)
    parser.add_argument("--max-draft-tokens", type=int, default=defaults.max_draft_tokens)
    # The gateway refuses tools of a model whose card has none.
    parser.add_argument("--tool-call-parser", default="hermes")
    parser.add_argument("--no-spinning", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    options = EngineOptions(
        num_threads=given.threads,
        max_num_seqs=given.max_num_seqs,
        max_model_len=given.max_model_len,
        kv_cache_bytes=given.kv_cache_bytes,
        prefix_cache_bytes=given.prefix_cache_bytes,
        max_draft_tokens=given.max_draft_tokens,
        enable_spinning=not given.no_spinning,
    )
    try:
        served = open_served(
            given.folder,
            given.served_model_name,
            options,
            tool_call_parser=given.tool_call_parser,
        )
    except MaasError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    address = Address(given.host, given.port)

    def say(port: int) -> None:
        sys.stderr.write(f"serving {given.served_model_name} on http://{given.host}:{port}\n")

    asyncio.run(serve(served, address, say, loads_adapters=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
