"""``python -m maas.edge.export.form_child MODEL_DIR OUT [ADAPTER_DIR]``: builds one ONNX form."""

import shutil
import sys
from pathlib import Path

from maas.core.errors import MaasError
from maas.core.lifeline import LIFELINE_FLAG, end_with_parent
from maas.edge.export.build import BuildOptions, build, shrink_embedding
from maas.edge.export.finish import put_beside
from maas.edge.export.form import BLOCK_SIZE, PRECISION
from maas.edge.export.merge import merge_adapter


def main(arguments: list[str]) -> int:
    """Build one form; the exit code."""
    if LIFELINE_FLAG in arguments:
        end_with_parent()
    model_dir, out, *adapters = (Path(item) for item in arguments if item != LIFELINE_FLAG)
    merged = out.with_name(f"{out.name}.merged")
    try:
        if adapters:
            model_dir = merge_adapter(model_dir, adapters[0], merged)
        build(model_dir, out, BuildOptions("cpu", PRECISION, BLOCK_SIZE))
        shrink_embedding(out)
        put_beside(model_dir, out, max_model_len=None)
    except MaasError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    finally:
        shutil.rmtree(merged, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
