"""Preparing weights: once, whole or not at all, and damage is found before an engine starts."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from maas.catalog.card import ModelCard
from maas.catalog.weights.files import Progress, hash_file
from maas.core.errors import DiskFull, SourceUnreachable, WeightsCorrupt
from maas.engines import prepare
from maas.engines.prepare import PreparedModel, prepare_model, verify_model
from tests.unit.catalog.fixtures import make_card, write_weights


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    write_weights(tmp_path / "source")
    return make_card(source=[f"file://{tmp_path}/source"])


def _prepare(card: ModelCard, tmp_path: Path, **options: Any) -> PreparedModel:
    options.setdefault("progress", lambda _: None)
    return prepare_model(card, weights_dir=tmp_path / "models", **options)


def test_prepared_folder_holds_the_files_and_their_hashes(card: ModelCard, tmp_path: Path) -> None:
    prepared = _prepare(card, tmp_path)
    assert prepared.model_dir == tmp_path / "models" / "tiny"
    assert set(prepared.manifest.files) == {"config.json", "model.safetensors", "tokenizer.json"}
    left = {path.name for path in (tmp_path / "models").iterdir()}
    assert left == {"tiny", ".tiny.lock"}


def test_progress_reaches_its_end(card: ModelCard, tmp_path: Path) -> None:
    seen: list[Progress] = []
    _prepare(card, tmp_path, progress=seen.append)
    assert seen[-1].done_bytes == seen[-1].total_bytes


def test_prepared_model_is_returned_at_once_without_its_source(
    card: ModelCard, tmp_path: Path
) -> None:
    _prepare(card, tmp_path)
    (tmp_path / "source" / "model.safetensors").unlink()
    started = time.perf_counter()
    _prepare(card, tmp_path)
    assert time.perf_counter() - started < 0.05


def test_torch_is_never_imported_here() -> None:
    code = "import sys, maas.engines.prepare, maas.cli.model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_changed_source_is_prepared_anew(card: ModelCard, tmp_path: Path) -> None:
    _prepare(card, tmp_path)
    write_weights(tmp_path / "other", size=8000)
    other = make_card(source=[f"file://{tmp_path}/other"])
    prepared = _prepare(other, tmp_path)
    assert prepared.manifest.files["model.safetensors"].size_bytes > 8000


@pytest.fixture
def two_forms(tmp_path: Path) -> ModelCard:
    write_weights(tmp_path / "source")
    write_weights(tmp_path / "small", size=1000)
    awq = {"name": "awq", "bits_per_weight": 4.5, "source": f"file://{tmp_path}/small"}
    return make_card(
        source=[f"file://{tmp_path}/source"],
        # Of the plain form: the same file of another form has another hash.
        sha256={"model.safetensors": hash_file(tmp_path / "source" / "model.safetensors").sha256},
        variants=[awq, {"name": "fp8", "bits_per_weight": 8}],
    )


def test_variant_with_a_source_of_its_own_has_a_folder_of_its_own(
    two_forms: ModelCard, tmp_path: Path
) -> None:
    plain = _prepare(two_forms, tmp_path)
    awq = _prepare(two_forms, tmp_path, quantization="awq")
    assert [form.model_dir.name for form in (plain, awq)] == ["tiny", "tiny@awq"]
    assert awq.manifest.source == (f"file://{tmp_path}/small",)
    sizes = [form.manifest.files["model.safetensors"].size_bytes for form in (plain, awq)]
    assert sizes[0] > 4000 > sizes[1]
    # Neither was thrown away for the other.
    assert _prepare(two_forms, tmp_path) == plain
    assert verify_model(two_forms, weights_dir=tmp_path / "models", quantization="awq", full=True)


def test_variant_that_the_engine_makes_loads_the_plain_weights(
    two_forms: ModelCard, tmp_path: Path
) -> None:
    assert _prepare(two_forms, tmp_path, quantization="fp8") == _prepare(two_forms, tmp_path)


def test_damaged_variant_names_the_command_that_mends_it(
    two_forms: ModelCard, tmp_path: Path
) -> None:
    with pytest.raises(WeightsCorrupt, match=r"maas model pull tiny --quantization awq$"):
        verify_model(two_forms, weights_dir=tmp_path / "models", quantization="awq")
    folder = _prepare(two_forms, tmp_path, quantization="awq").model_dir
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(WeightsCorrupt, match="maas model pull tiny --quantization awq --again"):
        _prepare(two_forms, tmp_path, quantization="awq")


def _weights(tmp_path: Path) -> Path:
    return tmp_path / "models" / "tiny" / "model.safetensors"


def test_truncated_weights_are_found(card: ModelCard, tmp_path: Path) -> None:
    _prepare(card, tmp_path)
    os.truncate(_weights(tmp_path), 1000)
    with pytest.raises(WeightsCorrupt, match=r"1000 bytes.*maas model pull tiny --again"):
        _prepare(card, tmp_path)


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_flipped_bit_is_found(card: ModelCard, tmp_path: Path) -> None:
    _prepare(card, tmp_path)
    _flip(_weights(tmp_path), -5)
    with pytest.raises(WeightsCorrupt, match="sha256 differs"):
        _prepare(card, tmp_path)


def test_flipped_bit_with_the_old_time_is_found_on_demand(card: ModelCard, tmp_path: Path) -> None:
    _prepare(card, tmp_path)
    before = _weights(tmp_path).stat()
    _flip(_weights(tmp_path), -5)
    os.utime(_weights(tmp_path), ns=(before.st_atime_ns, before.st_mtime_ns))
    verify_model(card, weights_dir=tmp_path / "models")
    with pytest.raises(WeightsCorrupt, match="sha256 differs"):
        verify_model(card, weights_dir=tmp_path / "models", full=True)


def test_broken_header_with_the_old_time_is_found(card: ModelCard, tmp_path: Path) -> None:
    _prepare(card, tmp_path)
    before = _weights(tmp_path).stat()
    _flip(_weights(tmp_path), 0)
    os.utime(_weights(tmp_path), ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(WeightsCorrupt, match="header"):
        _prepare(card, tmp_path)


def test_touched_but_equal_file_is_fine(card: ModelCard, tmp_path: Path) -> None:
    _prepare(card, tmp_path)
    _weights(tmp_path).touch()
    assert _prepare(card, tmp_path)


@pytest.mark.parametrize("damage", ["missing", "garbled manifest"])
def test_other_damage_is_found(card: ModelCard, tmp_path: Path, damage: str) -> None:
    _prepare(card, tmp_path)
    if damage == "missing":
        (tmp_path / "models" / "tiny" / "tokenizer.json").unlink()
    else:
        (tmp_path / "models" / "tiny" / "manifest.json").write_text("{")
    with pytest.raises(WeightsCorrupt, match="--again"):
        _prepare(card, tmp_path)


def test_again_mends_damage(card: ModelCard, tmp_path: Path) -> None:
    _prepare(card, tmp_path)
    os.truncate(_weights(tmp_path), 1000)
    _prepare(card, tmp_path, again=True)
    assert verify_model(card, weights_dir=tmp_path / "models", full=True)


def test_source_that_is_damaged_never_becomes_a_model(card: ModelCard, tmp_path: Path) -> None:
    os.truncate(tmp_path / "source" / "model.safetensors", 100)
    with pytest.raises(WeightsCorrupt, match=r"safetensors header|do not fill"):
        _prepare(card, tmp_path)
    assert not (tmp_path / "models" / "tiny").exists()


def test_folder_without_a_manifest_was_never_finished(card: ModelCard, tmp_path: Path) -> None:
    write_weights(tmp_path / "models" / "tiny", size=10)
    assert _prepare(card, tmp_path).manifest.files["model.safetensors"].size_bytes > 4096


def test_missing_source_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable, match="no such file"):
        _prepare(make_card(source=["file:///nowhere/at/all"]), tmp_path)


def test_not_prepared_says_how_to(card: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(WeightsCorrupt, match="maas model pull tiny"):
        verify_model(card, weights_dir=tmp_path / "models")


def test_full_disk_is_said_before_anything_comes(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maas.core.host.shutil.disk_usage", lambda _: type("U", (), {"free": 10}))
    with pytest.raises(DiskFull, match="needed"):
        _prepare(card, tmp_path)
    assert not (tmp_path / "models" / ".tiny.source" / "model.safetensors").exists()


def test_two_at_once_prepare_once(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = prepare.fetch_weights

    def slow(*args: Any, **options: Any) -> Any:
        calls.append(1)
        time.sleep(0.3)
        return real(*args, **options)

    monkeypatch.setattr(prepare, "fetch_weights", slow)
    said: list[str] = []
    results: list[PreparedModel] = []

    def run() -> None:
        results.append(_prepare(card, tmp_path, progress=lambda p: said.append(str(p))))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert len(calls) == 1
    assert any("waiting for another process" in line for line in said)


def test_chat_template_of_the_card_is_written(tmp_path: Path) -> None:
    write_weights(tmp_path / "source")
    card = make_card(source=[f"file://{tmp_path}/source"], chat_template="{{ messages }}")
    assert (_prepare(card, tmp_path).model_dir / "chat_template.jinja").read_text() == (
        "{{ messages }}"
    )


def test_gguf_that_cannot_be_converted_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'Traceback' >&2\necho 'ValueError: bad magic' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(prepare.sys, "executable", str(fake))
    with pytest.raises(WeightsCorrupt, match=r"m\.gguf of tiny.*ValueError: bad magic"):
        _prepare(make_card(source=[f"file://{tmp_path}/m.gguf"]), tmp_path)
    assert not (tmp_path / "models" / "tiny").exists()
