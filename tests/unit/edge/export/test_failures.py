"""What fails again is not tried again; what was killed, or found no room, is."""

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from maas.core.errors import BuildFailed
from maas.edge.export.failures import is_passing
from maas.edge.export.spec import ExportSpec
from maas.edge.export.start import run_export
from tests.fakes.bundles import SEED


@pytest.mark.parametrize(
    ("returncode", "said", "passes"),
    [
        (-9, "it said nothing", True),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", True),
        (1, "MemoryError", True),
        (1, "OSError: [Errno 28] No space left on device", True),
        (1, "KeyError: 'rope_type'", False),
        (1, "NotImplementedError: The m model is not currently supported.", False),
    ],
)
def test_only_a_process_that_was_killed_or_found_no_room_may_do_better(
    returncode: int, said: str, passes: bool
) -> None:
    assert is_passing(returncode, said) is passes


def test_what_a_library_does_not_take_ends_the_export_with_its_reason(tmp_path: Path) -> None:
    weights = tmp_path / "w"
    weights.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": -1}
    (weights / "config.json").write_text(json.dumps(config))
    spec = ExportSpec(
        model_id="m",
        base_model_id="m",
        model_dir=weights,
        name="m",
        work_dir=tmp_path / "work",
        out_path=tmp_path / "m.maas",
        signing_key=SecretStr(SEED),
        max_model_len=16,
        licence={},
        created_at=0.0,
    )
    with pytest.raises(BuildFailed, match="m cannot be exported: "):
        run_export(spec, lambda _: None)
