"""``python -m maas.edge.export.child SPEC.json``: one export in a process of its own.

The first line of standard input is the private key that signs. It tells on standard output, a line
of JSON each: ``{"progress": ...}`` as it goes, and at the end ``{"result": ...}`` or ``{"error":
{"code", "message", "param"}}``. It ends when its parent does.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pydantic import SecretStr

from maas.core.errors import BuildFailed, MaasError
from maas.core.lifeline import LIFELINE_FLAG, end_with_parent
from maas.edge.export.failures import is_passing
from maas.edge.export.pipeline import run
from maas.edge.export.spec import ExportResult, ExportSpec, Progress

_NICENESS = 10


def main(arguments: list[str]) -> int:
    """Run one export; the exit code."""
    # Before standard input is watched for its end.
    signing_key = SecretStr(sys.stdin.readline().strip())
    if LIFELINE_FLAG in arguments:
        # Its parent made it the leader of a group: what builds and measures is in it.
        end_with_parent(with_group=True)
    told = _take_stdout()
    os.nice(_NICENESS)
    fields = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    spec = ExportSpec.model_validate({**fields, "signing_key": signing_key})

    def report(progress: Progress) -> None:
        _tell(told, {"progress": progress.model_dump()})

    try:
        result = _run(spec, report)
    except MaasError as error:
        param = error.context.get("param")
        _tell(told, {"error": {"code": error.code, "message": error.message, "param": param}})
        return 1
    _tell(told, {"result": result.model_dump(mode="json")})
    return 0


def _run(spec: ExportSpec, report: Callable[[Progress], None]) -> ExportResult:
    try:
        return run(spec, report)
    except (MaasError, MemoryError):
        raise
    except Exception as error:
        # Libraries raise what they like at what they do not know: the next attempt gets it again.
        said = f"{type(error).__name__}: {error}"
        # The system's own errors have a number; transformers raises them without for a bad folder.
        if is_passing(1, said) or getattr(error, "errno", None) is not None:
            raise
        traceback.print_exc()
        raise BuildFailed(f"{spec.model_id} cannot be exported: {said}") from error


def _take_stdout() -> IO[str]:
    """Keep standard output for what is told: libraries print to it, and go to standard error."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return told


def _tell(told: IO[str], line: dict[str, Any]) -> None:
    told.write(json.dumps(line) + "\n")
    told.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
