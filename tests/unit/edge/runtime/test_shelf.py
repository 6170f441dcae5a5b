"""The shelf: only what changed is fetched, and a power cut at any moment leaves a whole bundle."""

import http.client
import http.server
import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from maas.core.errors import (
    AlreadyRunning,
    BundleRefused,
    EngineError,
    NotFound,
    SourceUnreachable,
)
from maas.edge.runtime.bundle.archive import hash_file, pack, read_head
from maas.edge.runtime.bundle.manifest import Manifest, Part, encode, with_id
from maas.edge.runtime.bundle.signing import load_or_make_key, public_key_of, sign
from maas.edge.runtime.shelf.shelf import Pulled, Shelf, verify_folder
from maas.edge.runtime.shelf.sources import FileSource, HttpSource, _Redirects
from tests.unit.edge.runtime.test_bundle import write_graph

BIG = 3 << 20
_PULL = """
import os, pathlib, sys
from maas.edge.runtime.shelf.shelf import Shelf
from maas.edge.runtime.shelf.sources import HttpSource
Shelf(pathlib.Path(os.environ["MAAS_EDGE_HOME"])).pull(HttpSource(sys.argv[1]))
"""


def make_bundle(tmp_path: Path, name: str, *, key: Ed25519PrivateKey, weights: int) -> Path:
    """Pack a bundle whose tokenizer is shared and whose weights are its own."""
    folder = tmp_path / f"{name}.source"
    folder.mkdir()
    write_graph(folder)
    (folder / "tokenizer.json").write_bytes(random.Random(0).randbytes(BIG))
    (folder / "big.bin").write_bytes(random.Random(weights).randbytes(BIG))
    roles = {"model.onnx": "model", "model.onnx.data": "weights"}
    roles |= {"tokenizer.json": "tokenizer", "genai_config.json": "config", "big.bin": "weights"}
    parts = tuple(
        Part(part, (folder / part).stat().st_size, hash_file(folder / part), role)
        for part, role in roles.items()
    )
    manifest = Manifest(
        schema_version=1,
        bundle_id="",
        name=name,
        model_id="m",
        base_model_id="m",
        created_at=float(weights),
        precision="int4",
        target="cpu",
        task="generate",
        licence={},
        lineage={},
        parts=parts,
        ram_required_bytes=1,
        max_model_len=16,
        cost_card={},
        receipt={},
    )
    out = tmp_path / "served" / f"{name}.maas"
    pack(folder, manifest, key, out)
    return out


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    return load_or_make_key(tmp_path / "key")


@pytest.fixture
def one(tmp_path: Path, key: Ed25519PrivateKey) -> Path:
    return make_bundle(tmp_path, "one", key=key, weights=1)


@pytest.fixture
def two(tmp_path: Path, key: Ed25519PrivateKey) -> Path:
    return make_bundle(tmp_path, "two", key=key, weights=2)


class RangeServer(http.server.BaseHTTPRequestHandler):
    """Serves a folder in ranges; can be told to stop half way."""

    folder: Path
    stop_after: int | None = None
    ignores_ranges = False
    drips_after: int | None = None
    leads_to: str | None = None
    keys: list[str | None]
    num_sent = 0

    def do_GET(self) -> None:
        self.keys.append(self.headers["Authorization"])
        if self.leads_to is not None:
            self.send_response(302)
            self.send_header("Location", self.leads_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = (self.folder / self.path.strip("/")).read_bytes()
        wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if wanted and not self.ignores_ranges:
            start, end = int(wanted[1]), int(wanted[2]) + 1
            if start >= len(data):
                self.send_error(416)
                return
            data = data[start:end]
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cls = type(self)
        for place in range(0, len(data), 65536):
            if cls.stop_after is not None and cls.num_sent > cls.stop_after:
                cls.stop_after = None
                self.connection.close()
                return
            try:
                if cls.drips_after is not None and cls.num_sent > cls.drips_after:
                    self._drip(data[place : place + 65536])
                self.wfile.write(data[place : place + 65536])
            except OSError:
                return
            cls.num_sent += 65536

    def _drip(self, data: bytes) -> None:
        for place in range(len(data)):
            self.wfile.write(data[place : place + 1])
            time.sleep(0.02)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, type[RangeServer]]]:
    handler = type("Handler", (RangeServer,), {"folder": tmp_path / "served", "keys": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", handler
        running.shutdown()


def name_of(shelf: Shelf) -> str | None:
    held = shelf.current()
    return held.manifest.name if held else None


def test_a_pulled_bundle_is_in_use_and_whole(tmp_path: Path, one: Path) -> None:
    shelf = Shelf(tmp_path / "home")
    assert shelf.current() is None
    pulled = shelf.pull(FileSource(one))
    assert name_of(shelf) == "one"
    shelf.verify(pulled.held)
    assert pulled.reused_bytes == 0


def test_an_update_fetches_only_the_parts_that_changed(server, tmp_path, one, two):
    url, handler = server
    shelf = Shelf(tmp_path / "home")
    first = shelf.pull(HttpSource(f"{url}/one.maas"))
    handler.num_sent = 0
    second = shelf.pull(HttpSource(f"{url}/two.maas"))
    assert first.fetched_bytes > 2 * BIG
    assert second.fetched_bytes == BIG
    assert handler.num_sent < BIG + (1 << 20)
    shelf.verify(second.held)


def test_what_came_before_the_line_was_cut_is_not_fetched_again(server, tmp_path, one):
    url, handler = server
    shelf = Shelf(tmp_path / "home")
    handler.stop_after = BIG + BIG // 2
    with pytest.raises(SourceUnreachable):
        shelf.pull(HttpSource(f"{url}/one.maas"))
    assert shelf.current() is None
    handler.num_sent = 0
    shelf.pull(HttpSource(f"{url}/one.maas"))
    assert handler.num_sent < BIG + (1 << 20)
    assert name_of(shelf) == "one"


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_server_that_drips_is_given_up_and_gone_on_from(server, tmp_path, one, ignores_ranges):
    url, handler = server
    shelf = Shelf(tmp_path / "home")
    handler.drips_after, handler.ignores_ranges = BIG, ignores_ranges
    began = time.monotonic()
    with pytest.raises(SourceUnreachable, match="too slow to go on"):
        shelf.pull(HttpSource(f"{url}/one.maas", patience_s=0.5))
    assert time.monotonic() - began < 8
    handler.drips_after, handler.num_sent = None, 0
    # The shelf is not locked.
    shelf.pull(HttpSource(f"{url}/one.maas"))
    assert name_of(shelf) == "one"
    assert ignores_ranges or handler.num_sent < BIG + (1 << 20)


def test_a_bundle_whose_url_leads_elsewhere(server, tmp_path, one):
    url, handler = server
    there = type("There", (RangeServer,), {"folder": handler.folder, "keys": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), there) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        handler.leads_to = f"http://127.0.0.1:{other.server_port}/one.maas"
        with pytest.raises(SourceUnreachable, match="which is not https"):
            Shelf(tmp_path / "a").pull(HttpSource(f"{url}/one.maas", key="secret"))
        assert there.keys == []
        Shelf(tmp_path / "b").pull(HttpSource(f"{url}/one.maas"))
        assert set(there.keys) == {None}
        other.shutdown()


def lead(old: str, new: str, *, has_key: bool) -> urllib.request.Request | None:
    redirects, headers = _Redirects(has_key=has_key), http.client.HTTPMessage()
    asked = urllib.request.Request(old)
    asked.add_unredirected_header("Authorization", "Bearer secret")
    return redirects.redirect_request(asked, io.BytesIO(), 302, "Found", headers, new)


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("https://a/b", "https://store/b?signed"),
        ("https://a/b", "https://a/c"),
        ("http://a/b", "http://A/c"),
        ("http://a/b", "https://store/b"),
    ],
)
def test_redirects_that_are_followed_without_the_key(old, new, has_key):
    followed = lead(old, new, has_key=has_key)
    assert followed is not None
    assert not followed.has_header("Authorization")


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("new", ["http://a/b", "http://store/b", "ftp://store/b"])
def test_redirects_from_https_to_less_are_refused(new, has_key):
    with pytest.raises(urllib.error.HTTPError, match="not https") as caught:
        lead("https://a/b", new, has_key=has_key)
    caught.value.close()


def test_a_server_without_ranges_is_read_too(server, tmp_path, one):
    url, handler = server
    handler.ignores_ranges = True
    shelf = Shelf(tmp_path / "home")
    shelf.verify(shelf.pull(HttpSource(f"{url}/one.maas", key="secret")).held)
    assert set(handler.keys) == {"Bearer secret"}


def test_going_back_and_forth(tmp_path, one, two):
    shelf = Shelf(tmp_path / "home")
    with pytest.raises(NotFound):
        shelf.roll_back()
    shelf.pull(FileSource(one))
    shelf.pull(FileSource(two))
    assert shelf.roll_back().manifest.name == "one"
    assert name_of(shelf) == "one"
    assert shelf.roll_back().manifest.name == "two"


def test_only_two_bundles_are_kept(tmp_path, key, one, two):
    shelf = Shelf(tmp_path / "home")
    three = make_bundle(tmp_path, "three", key=key, weights=3)
    for path in (one, two, three):
        shelf.pull(FileSource(path))
    assert [held.manifest.name for held in shelf.held()] == ["three", "two"]
    parts = {part.sha256 for held in shelf.held() for part in held.manifest.parts}
    assert {path.name for path in (tmp_path / "home" / "parts").iterdir()} == parts


def test_the_first_key_is_trusted_and_no_other_until_told(tmp_path, one):
    other = load_or_make_key(tmp_path / "other")
    theirs = make_bundle(tmp_path, "theirs", key=other, weights=9)
    shelf = Shelf(tmp_path / "home")
    shelf.pull(FileSource(one))
    with pytest.raises(BundleRefused, match="nobody here trusts"):
        shelf.pull(FileSource(theirs))
    assert name_of(shelf) == "one"
    shelf.trust(public_key_of(other))
    shelf.pull(FileSource(theirs))
    assert name_of(shelf) == "theirs"


def test_a_refused_bundle_introduces_no_key(tmp_path, one):
    whole = one.read_bytes()
    one.write_bytes(whole[:-2000] + bytes(2000))
    shelf = Shelf(tmp_path / "home")
    with pytest.raises(BundleRefused):
        shelf.pull(FileSource(one))
    assert shelf.trusted() == set()
    assert shelf.current() is None


def test_a_changed_part_is_refused_and_the_old_bundle_stays(tmp_path, one, two):
    shelf = Shelf(tmp_path / "home")
    shelf.pull(FileSource(one))
    data = bytearray(two.read_bytes())
    data[-4000] ^= 1
    two.write_bytes(data)
    with pytest.raises(BundleRefused, match="not those the manifest names"):
        shelf.pull(FileSource(two))
    assert name_of(shelf) == "one"
    shelf.verify(shelf.current())


def test_a_cut_file_is_refused_and_the_old_bundle_stays(tmp_path, one, two):
    shelf = Shelf(tmp_path / "home")
    shelf.pull(FileSource(one))
    two.write_bytes(two.read_bytes()[: 2 * BIG])
    with pytest.raises(SourceUnreachable, match="ended after"):
        shelf.pull(FileSource(two))
    assert name_of(shelf) == "one"


def newer(manifest: Manifest) -> bytes:
    return encode(manifest).replace(b'"schema_version":1', b'"schema_version":2')


def leaving(manifest: Manifest) -> bytes:
    parts = tuple(
        msgspec.structs.replace(part, path="../a.on") if part.path == "big.bin" else part
        for part in manifest.parts
    )
    return encode(with_id(msgspec.structs.replace(manifest, parts=parts)))


def smaller(manifest: Manifest) -> bytes:
    parts = tuple(
        msgspec.structs.replace(part, size_bytes=BIG - 1) if part.path == "big.bin" else part
        for part in manifest.parts
    )
    return encode(with_id(msgspec.structs.replace(manifest, parts=parts)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [(newer, "update maas-edge"), (leaving, "no path of a part"), (smaller, r"big\.bin")],
)
def test_what_its_own_maker_signed_wrong_is_refused_and_the_old_bundle_stays(
    tmp_path, key, one, two, change, reason
):
    shelf = Shelf(tmp_path / "home")
    shelf.pull(FileSource(one))
    with two.open("rb") as stream:
        head = read_head(stream, None)
    data = change(head.manifest)
    assert len(data) == len(head.data), "only then is the archive around it the same"
    whole = two.read_bytes().replace(head.data, data)
    two.write_bytes(whole.replace(head.signature, sign(data, key)))
    with pytest.raises(BundleRefused, match=reason):
        shelf.pull(FileSource(two))
    assert name_of(shelf) == "one"
    shelf.verify(shelf.current())


def test_two_processes_do_not_change_a_shelf_at_once(tmp_path, one):
    shelf = Shelf(tmp_path / "home")
    shelf.pull(FileSource(one))
    with shelf._alone(), pytest.raises(AlreadyRunning):
        Shelf(tmp_path / "home").pull(FileSource(one))


def test_a_folder_somebody_changed_is_refused(tmp_path, one):
    held = Shelf(tmp_path / "home").pull(FileSource(one)).held
    path = held.folder / "tokenizer.json"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleRefused, match=r"tokenizer\.json"):
        verify_folder(held.folder, None)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(BundleRefused, match="plain file"):
        verify_folder(held.folder, None)


@pytest.mark.parametrize("kind", ["file", "hidden", "folder", "link", "linked_part"])
def test_a_folder_somebody_put_something_into_is_refused(tmp_path, one, kind):
    folder = Shelf(tmp_path / "home").pull(FileSource(one)).held.folder
    verify_folder(folder, None)
    if kind == "folder":
        (folder / "adapters").mkdir()
    elif kind == "link":
        (folder / "chat_template.jinja").symlink_to(folder / "nowhere")
    elif kind == "linked_part":
        (folder / "bundle.sig").rename(tmp_path / "sig")
        (folder / "bundle.sig").symlink_to(tmp_path / "sig")
    else:
        name = ".x" if kind == "hidden" else "chat_template.jinja"
        (folder / name).write_text("{{ 1 }}")
    with pytest.raises(BundleRefused, match="not of the bundle"):
        verify_folder(folder, None)


def test_a_bundle_that_does_not_work_is_not_switched_to_and_introduces_no_key(tmp_path, one, two):
    def broken(_: Pulled) -> None:
        raise EngineError("broken")

    shelf = Shelf(tmp_path / "home")
    with pytest.raises(EngineError):
        shelf.pull(FileSource(one), on_fetched=broken)
    assert (shelf.current(), shelf.trusted()) == (None, set())
    shelf.pull(FileSource(one))
    with pytest.raises(EngineError):
        shelf.pull(FileSource(two), on_fetched=broken)
    assert name_of(shelf) == "one"
    assert shelf.previous() is None


def test_a_part_here_of_another_size_is_not_taken_for_it(tmp_path, one):
    shelf = Shelf(tmp_path / "home")
    part = shelf.pull(FileSource(one)).held.manifest.parts[0]
    assert shelf._has(part)
    assert not shelf._has(msgspec.structs.replace(part, size_bytes=part.size_bytes + 7))


def test_pulling_again_mends_what_was_damaged(tmp_path, one):
    shelf = Shelf(tmp_path / "home")
    held = shelf.pull(FileSource(one)).held
    (held.folder / "tokenizer.json").write_bytes(bytes(BIG))
    (held.folder / "big.bin").unlink()
    shelf.pull(FileSource(one))
    shelf.verify(shelf.current())


@pytest.mark.parametrize("damage", ["garbage", "gone"])
def test_a_damaged_manifest_does_not_keep_the_next_bundle_away(tmp_path, one, two, damage):
    shelf = Shelf(tmp_path / "home")
    manifest = shelf.pull(FileSource(one)).held.folder / "bundle.json"
    manifest.unlink()
    if damage == "garbage":
        manifest.write_bytes(b"{")
    shelf.pull(FileSource(two))
    assert name_of(shelf) == "two"
    assert shelf.previous() is None, "nobody goes back to it"
    shelf.pull(FileSource(one))
    assert name_of(shelf) == "one"
    shelf.verify(shelf.current())


def power_cuts(tmp_path: Path, url: str, num_kills: int) -> tuple[int, int]:
    """Kill updates at random moments; return how many were killed, and finished."""
    home = tmp_path / "home"
    environment = {**os.environ, "MAAS_EDGE_HOME": str(home)}
    # The command would also try them, and they are no models.
    command = [sys.executable, "-c", _PULL]
    subprocess.run([*command, f"{url}/one.maas"], env=environment, check=True, capture_output=True)
    # Much of a process is Python's start: kills are spread over what comes after it.
    started = time.monotonic()
    subprocess.run([*command, f"{url}/two.maas"], env=environment, check=True, capture_output=True)
    whole_s = time.monotonic() - started
    source = random.Random(5)
    num_killed = num_finished = 0
    names = ["one", "two"]
    while num_killed < num_kills:
        names.reverse()
        child = subprocess.Popen(
            [*command, f"{url}/{names[0]}.maas"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(whole_s * source.uniform(0.3, 1.05))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            num_killed += 1
        else:
            num_finished += 1
        child.wait()
        shelf = Shelf(home)
        held = shelf.current()
        assert held is not None
        shelf.verify(held)
        # What is tried again works, whatever was left behind.
        if num_killed % 5 == 0:
            shelf.pull(FileSource(tmp_path / "served" / f"{names[0]}.maas"))
            assert name_of(shelf) == names[0]
    return num_killed, num_finished


def test_a_power_cut_leaves_a_bundle_that_works(server, tmp_path, one, two):
    assert power_cuts(tmp_path, server[0], 3)[0] == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_power_cuts_leave_a_bundle_that_works(server, tmp_path, one, two):
    assert power_cuts(tmp_path, server[0], 24)[0] == 24


def test_a_full_disk_leaves_the_old_bundle(tmp_path, one, two, monkeypatch):
    shelf = Shelf(tmp_path / "home")
    shelf.pull(FileSource(one))

    def no_room(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        shelf.pull(FileSource(two))
    monkeypatch.undo()
    assert name_of(shelf) == "one"
    shelf.verify(shelf.current())
    shelf.pull(FileSource(two))
    assert name_of(shelf) == "two"


def test_a_key_that_is_none_is_refused(tmp_path):
    with pytest.raises(BundleRefused, match="not a public key"):
        Shelf(tmp_path).trust("zz")
