"""Gives onnxruntime-genai's builder a model's files as it reads them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CONFIG = "config.json"
# Of models whose layers see a window and all positions in turn (Gemma 3).
_WHOLE, _WINDOW = "full_attention", "sliding_attention"


@contextmanager
def builder_input(model_dir: Path, folder: Path) -> Iterator[Path]:
    """Yield a folder that the builder reads: the model's own, or links and another configuration.

    transformers 5 writes rotary parameters by kind of layer; the builder looks for those of layers
    that see all positions beside them, and for the base of the others as ``rope_local_base_freq``.

    Args:
        model_dir: Safetensors, configuration and tokenizer.
        folder: A new folder, for the time of the build.
    """
    config: dict[str, Any] = json.loads((model_dir / _CONFIG).read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if not {_WHOLE, _WINDOW} <= rope.keys():
        yield model_dir
        return
    flat = {**rope[_WHOLE], "rope_local_base_freq": rope[_WINDOW]["rope_theta"]}
    folder.mkdir(parents=True)
    try:
        for path in model_dir.iterdir():
            if path.name != _CONFIG:
                (folder / path.name).symlink_to(path.resolve())
        changed = config | {"rope_parameters": flat | rope}
        (folder / _CONFIG).write_text(json.dumps(changed), encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
