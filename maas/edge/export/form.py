"""The ONNX form of a model's weights, for the platform's own onnx engine.

Weights in eight bits, rounded to the nearest: no calibration, half a minute, and answers that
are the original's (docs/benchmarks.md). It lies beside the weights it was made of and is made
again when those, or the way it is made, change. What a device gets is an export.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from maas.core.errors import EngineError
from maas.core.host import check_disk
from maas.core.lifeline import LIFELINE_FLAG
from maas.edge.export.architectures import check_weights

PRECISION = "int8"
BLOCK_SIZE = 64
_VERSION = 3
_RECORD = "form.json"
# Eight bits and the scales; the builder's, with the embedding in float32, while it is made smaller.
_ROOM_FACTOR = 3


def form_dir(model_dir: Path, forms_dir: Path, adapter_dir: Path | None = None) -> Path:
    """Return where the ONNX form of some weights is, or will be."""
    facts = [str(_VERSION), PRECISION, str(BLOCK_SIZE), _identity(model_dir)]
    if adapter_dir is not None:
        facts.append(_identity(adapter_dir))
    digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
    return forms_dir / f"{model_dir.name}-{digest}"


def prepare_form(
    model_dir: Path,
    forms_dir: Path,
    report: Callable[[str], None] = lambda _: None,
    *,
    adapter_dir: Path | None = None,
) -> Path:
    """Make the ONNX form of some weights; milliseconds when it is there.

    Args:
        model_dir: Safetensors, configuration and tokenizer.
        forms_dir: Folder of all forms.
        report: Told what is done.
        adapter_dir: A PEFT adapter that is merged into the weights.

    Raises:
        CapabilityMissing: Nobody has proved that the architecture is built rightly.
        EngineError: It cannot be built.
        DiskFull: No room for it.
    """
    final = form_dir(model_dir, forms_dir, adapter_dir)
    if (final / _RECORD).exists():
        return final
    check_weights(model_dir, model_dir.name)
    forms_dir.mkdir(parents=True, exist_ok=True)
    with (forms_dir / f".{final.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (final / _RECORD).exists():
            return final
        size = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
        check_disk(forms_dir, need_bytes=_ROOM_FACTOR * size)
        report("making the ONNX form of the weights")
        new = forms_dir / f".{final.name}.new"
        shutil.rmtree(new, ignore_errors=True)
        _run_child(model_dir, new, adapter_dir)
        record = {"made_of": _identity(model_dir), "precision": PRECISION, "version": _VERSION}
        (new / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        new.rename(final)
    return final


def _identity(model_dir: Path) -> str:
    """Return what tells these weights from others: hashes where they were recorded."""
    manifest = model_dir / "manifest.json"
    if manifest.exists():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    stats = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(model_dir.iterdir())
        if path.is_file()
    ]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _run_child(model_dir: Path, out: Path, adapter_dir: Path | None) -> None:
    """Build in a process that ends when this one does: it loads torch."""
    command = [sys.executable, "-P", "-m", "maas.edge.export.form_child"]
    merged = [] if adapter_dir is None else [str(adapter_dir)]
    child = subprocess.Popen(  # noqa: S603 - our own module
        [*command, str(model_dir), str(out), *merged, LIFELINE_FLAG],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        said = child.stderr.read() if child.stderr else ""
        code = child.wait()
    if code:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"no ONNX form of {model_dir.name} can be made: {last}")
