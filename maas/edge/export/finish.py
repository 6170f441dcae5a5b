"""Puts beside a built graph what its users need, and nothing else."""

import json
import shutil
from pathlib import Path

BESIDE = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
)


def copy_beside(model_dir: Path, folder: Path) -> None:
    """Copy tokenizer and template."""
    for name in BESIDE:
        if (model_dir / name).exists():
            shutil.copyfile(model_dir / name, folder / name)


def put_beside(model_dir: Path, folder: Path, *, max_model_len: int | None) -> None:
    """Copy tokenizer and template, and set the context.

    Args:
        model_dir: The original.
        folder: The graph's.
        max_model_len: What the configuration says of the context; none leaves the builder's.
    """
    # The builder writes them again, larger: the original's bytes are the model's own.
    copy_beside(model_dir, folder)
    shutil.rmtree(folder.parent / "cache", ignore_errors=True)
    path = folder / "genai_config.json"
    if max_model_len is None or not path.exists():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["context_length"] = max_model_len
    config["search"]["max_length"] = max_model_len
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
