"""hf:// against a server that speaks the hub's protocol and breaks in the ways hubs break."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from maas.catalog.weights import http
from maas.catalog.weights.fetch import Fetched, fetch_weights
from maas.catalog.weights.files import Progress, SourceAccess
from maas.core.errors import SourceUnreachable, WeightsCorrupt, WeightsForbidden
from tests.unit.catalog.fixtures import make_card, safetensors_bytes, write_weights
from tests.unit.catalog.weights.hub_server import COMMIT, FakeHub, serve

WEIGHTS = safetensors_bytes(50_000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "README.md": b"read me",
    "onnx/model.safetensors": b"another form",
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub(dict(FILES))
    with serve(hub):
        yield hub


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.time, "sleep", lambda _: None)


def _fetch(hub: FakeHub, folder: Path, *, token: str | None = None, **changes: object) -> Fetched:
    access = SourceAccess(hf_endpoint=hub.url, hf_token=SecretStr(token) if token else None)
    reports: list[Progress] = []
    return fetch_weights(make_card(**changes), folder, reports.append, access=access)


def test_files_come_whole_and_the_revision_is_pinned(hub: FakeHub, tmp_path: Path) -> None:
    fetched = _fetch(hub, tmp_path)
    assert fetched.commit == COMMIT
    assert set(fetched.sha256) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert all(COMMIT in path for path, _ in hub.requests if "resolve" in path)


def test_dropped_connection_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"model.safetensors": WEIGHTS}
    hub.drop_after = [20_000, 10_000]
    _fetch(hub, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges() == ["bytes=20000-", "bytes=30000-"]


def test_stopped_process_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.part").write_bytes(WEIGHTS[:7000])
    _fetch(hub, tmp_path)
    assert hub.ranges() == ["bytes=7000-"]
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_server_that_ignores_ranges_still_gives_the_right_file(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.ignore_range = True
    (tmp_path / "model.safetensors.part").write_bytes(b"x" * 7000)
    _fetch(hub, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS


def test_second_fetch_asks_for_no_file_again(hub: FakeHub, tmp_path: Path) -> None:
    _fetch(hub, tmp_path)
    before = len(hub.requests)
    _fetch(hub, tmp_path)
    assert not [path for path, _ in hub.requests[before:] if "resolve" in path]


def test_server_that_brings_nothing_is_given_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.files = {"model.safetensors": WEIGHTS}
    hub.drop_after = [0] * 50
    with pytest.raises(SourceUnreachable, match=r"model\.safetensors"):
        _fetch(hub, tmp_path)
    assert len(hub.requests) == 2 + http.MAX_STALLS


def test_wrong_hash_is_refused_and_thrown_away(hub: FakeHub, tmp_path: Path) -> None:
    hub.wrong_hash = "model.safetensors"
    with pytest.raises(WeightsCorrupt, match="published"):
        _fetch(hub, tmp_path)
    assert not list(tmp_path.glob("model.safetensors*"))


def test_changed_small_file_is_caught_by_its_git_id(hub: FakeHub, tmp_path: Path) -> None:
    tree = hub.tree()
    hub.tree = lambda: tree  # type: ignore[method-assign]
    hub.files["config.json"] = b'{"model_type": "LLAMA"}'
    with pytest.raises(WeightsCorrupt, match=r"config\.json"):
        _fetch(hub, tmp_path)


def test_hash_of_the_card_counts_too(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(WeightsCorrupt, match="published"):
        _fetch(hub, tmp_path, sha256={"model.safetensors": "1" * 64})


def test_token_goes_to_the_hub_and_not_to_where_it_redirects(hub: FakeHub, tmp_path: Path) -> None:
    elsewhere = FakeHub(dict(FILES))
    hub.token = "secret"
    with serve(elsewhere) as url:
        hub.cdn = url
        _fetch(hub, tmp_path, token="secret")
    assert (tmp_path / "model.safetensors").read_bytes() == WEIGHTS
    assert [path for path, _ in elsewhere.requests] == ["/cdn/model.safetensors"]
    assert all("Authorization" not in headers for _, headers in elsewhere.requests)


def test_missing_token_says_how_to_set_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "secret"
    with pytest.raises(SourceUnreachable, match="MAAS_HF_TOKEN"):
        _fetch(hub, tmp_path)


def test_long_listing_is_read_to_its_end(hub: FakeHub, tmp_path: Path) -> None:
    hub.page_size = 2
    assert len(_fetch(hub, tmp_path).sha256) == 3


def test_unknown_model_is_said_at_once(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable, match="no such model"):
        _fetch(hub, tmp_path, source=["hf://org/other@main"])


def test_nobody_there_is_one_clear_line(tmp_path: Path) -> None:
    access = SourceAccess(hf_endpoint="http://127.0.0.1:9")
    with pytest.raises(SourceUnreachable, match="check the network"):
        fetch_weights(make_card(), tmp_path, print, access=access)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a\\b.json", "c:/x.json"])
def test_name_outside_the_folder_is_refused(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.files[name] = b"{}"
    with pytest.raises(WeightsForbidden, match="outside"):
        _fetch(hub, tmp_path)


def test_code_in_the_config_is_refused_before_weights_come(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["config.json"] = b'{"auto_map": {"AutoModel": "evil.Model"}}'
    with pytest.raises(WeightsForbidden, match="auto_map"):
        _fetch(hub, tmp_path)
    assert not list(tmp_path.glob("model.safetensors*"))


@pytest.mark.parametrize(
    ("card_says", "operator_says", "mend"),
    [(False, True, "say allow_pickle"), (True, False, "MAAS_ALLOW_PICKLE")],
)
def test_pickles_need_card_and_operator(
    hub: FakeHub, tmp_path: Path, card_says: bool, operator_says: bool, mend: str
) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickled"}
    card = make_card(allow_pickle=card_says)
    access = SourceAccess(hf_endpoint=hub.url)
    with pytest.raises(WeightsForbidden, match=mend):
        fetch_weights(card, tmp_path, print, access=access, allow_pickle=operator_says)
    allowed = make_card(allow_pickle=True)
    fetched = fetch_weights(allowed, tmp_path, print, access=access, allow_pickle=True)
    assert "pytorch_model.bin" in fetched.sha256


def test_pickles_beside_safetensors_are_left_out(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["pytorch_model.bin"] = b"pickled"
    hub.files["modeling.py"] = b"import os"
    assert set(_fetch(hub, tmp_path).sha256) == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }


def test_what_another_source_left_is_not_taken(hub: FakeHub, tmp_path: Path) -> None:
    write_weights(tmp_path / "local", size=50_000)
    changed = bytearray(WEIGHTS)
    changed[-1] ^= 1
    (tmp_path / "local" / "model.safetensors").write_bytes(changed)
    _fetch(hub, tmp_path / "out")
    _fetch(hub, tmp_path / "out", source=[f"file://{tmp_path}/local"])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == changed
