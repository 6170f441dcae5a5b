"""Blobs in a local folder and in a real S3 API."""

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from maas.core.errors import ConfigError, DiskFull, NotFound, StorageUnavailable
from maas.core.settings import Settings
from maas.store import blobs as module
from maas.store.blobs import Blobs, Incoming, open_blobs
from tests.s3 import s3_server

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
pytestmark = pytest.mark.filterwarnings("ignore")  # botocore's own deprecations
MIB = 1 << 20


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


def s3_blobs(endpoint: str, home: Path) -> Blobs:
    bucket = f"bucket-{uuid4().hex[:8]}"
    s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True).mkdir(bucket)
    settings = Settings(home=home, storage_url=f"s3://{bucket}/kept", s3_endpoint=endpoint)
    return open_blobs(settings)


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return open_blobs(Settings(home=tmp_path))
    return s3_blobs(request.getfixturevalue("endpoint"), tmp_path)


def put(blobs: Blobs, key: str, data: bytes) -> module.BlobFacts:
    incoming = blobs.begin()
    for start in range(0, len(data), 100_000):
        incoming.write(data[start : start + 100_000])
    return blobs.put(key, incoming)


def spooled(home: Path) -> list[Path]:
    return [path for path in home.rglob("spool-*") if path.is_file()]


def test_what_is_put_is_read_again_with_size_and_hash(blobs: Blobs, tmp_path: Path) -> None:
    # Over two parts of an upload to S3.
    data = os.urandom(17 * MIB + 5)
    facts = put(blobs, "files/a", data)
    assert facts == module.BlobFacts("files/a", len(data), hashlib.sha256(data).hexdigest())
    assert b"".join(blobs.read("files/a")) == data
    assert b"".join(blobs.read("files/a", start=9 * MIB, end=11 * MIB)) == data[9 * MIB : 11 * MIB]
    assert blobs.exists("files/a")
    assert not spooled(tmp_path)


def test_second_put_replaces_the_first(blobs: Blobs) -> None:
    put(blobs, "files/a", b"first")
    put(blobs, "files/a", b"second")
    assert b"".join(blobs.read("files/a")) == b"second"


def test_what_is_deleted_is_not_found(blobs: Blobs, tmp_path: Path) -> None:
    put(blobs, "files/a", b"x")
    blobs.delete("files/a")
    blobs.delete("files/a")
    assert not blobs.exists("files/a")
    with pytest.raises(NotFound):
        list(blobs.read("files/a"))
    with pytest.raises(NotFound):
        blobs.download("files/a", tmp_path / "a")
    assert not list(tmp_path.glob("*a*"))


def test_keys_lie_under_their_prefix_with_their_age(blobs: Blobs) -> None:
    put(blobs, "files/a", b"x")
    put(blobs, "uploads/u/p", b"x")
    [(key, age_s)] = blobs.keys("uploads")
    assert key == "uploads/u/p"
    assert -2 < age_s < 60
    assert blobs.keys("nothing") == []


def test_folder_comes_back_whole(blobs: Blobs, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config").write_bytes(b"c")
    (source / "weights").write_bytes(b"w" * MIB)
    assert blobs.put_folder("adapters/h", source, ("weights", "config")) == MIB + 1
    blobs.get_folder("adapters/h", tmp_path / "here", ("weights", "config"))
    names = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert names == {"weights": b"w" * MIB, "config": b"c"}


def test_folder_without_all_its_files_leaves_none(blobs: Blobs, tmp_path: Path) -> None:
    put(blobs, "adapters/h/weights", b"w")
    with pytest.raises(NotFound):
        blobs.get_folder("adapters/h", tmp_path / "here", ("weights", "config"))
    assert not (tmp_path / "here").exists()
    assert not list(tmp_path.glob(".here*"))


def test_folder_that_a_dead_process_never_completed_is_removed_when_it_is_old(
    blobs: Blobs, tmp_path: Path
) -> None:
    put(blobs, "adapters/h/config", b"c")
    home = tmp_path / "copies"
    old, young = home / ".a.new-1", home / ".b.new-2"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "config").write_bytes(b"half")
    long_ago = time.time() - module.SPOOL_KEPT_S - 1
    os.utime(old, (long_ago, long_ago))
    blobs.get_folder("adapters/h", home / "h", ("config",))
    assert sorted(path.name for path in home.iterdir()) == [".b.new-2", "h"]


def test_spool_of_a_dead_process_is_swept_when_it_is_old(blobs: Blobs, tmp_path: Path) -> None:
    # Killed in between: nothing was ever put, and nobody discards it.
    for _ in range(2):
        blobs.begin().write(b"x")
    old, _young = spooled(tmp_path)
    long_ago = time.time() - module.SPOOL_KEPT_S - 1
    os.utime(old, (long_ago, long_ago))
    blobs.sweep()
    assert spooled(tmp_path) == [_young]


def test_upload_to_s3_that_was_never_completed_is_swept_when_it_is_old(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = s3_blobs(endpoint, tmp_path)
    bucket = blobs._root.partition("/")[0]
    for key in ("kept/files/a", "others/b"):
        blobs._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    # This server says that all of them began in 2010.
    monkeypatch.setattr(module, "SPOOL_KEPT_S", time.time())
    blobs.sweep()
    assert len(blobs._fs.list_multipart_uploads(bucket)) == 2
    monkeypatch.undo()
    blobs.sweep()
    assert [u["Key"] for u in blobs._fs.list_multipart_uploads(bucket)] == ["others/b"]


class FullStream:
    """A file on a disk that has no room left."""

    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, data: bytes) -> int:
        raise OSError(self._number, os.strerror(self._number))

    def close(self) -> None:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    blobs = open_blobs(Settings(home=tmp_path))
    (tmp_path / "source").write_bytes(b"x" * 10)
    begun = blobs.begin

    def begin() -> Incoming:
        incoming = begun()
        incoming._stream.close()
        incoming._stream = FullStream(number)  # type: ignore[assignment]
        return incoming

    monkeypatch.setattr(blobs, "begin", begin)
    with pytest.raises(DiskFull):
        blobs.put_file("files/a", tmp_path / "source")
    assert not spooled(tmp_path)
    assert not blobs.exists("files/a")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_at_the_last_byte_is_noticed(tmp_path: Path) -> None:
    incoming = open_blobs(Settings(home=tmp_path)).begin()
    incoming._stream.close()
    incoming._stream = Path("/dev/full").open("wb")  # noqa: SIM115 - discard closes it
    incoming.write(b"x")  # buffered
    with pytest.raises(DiskFull):
        incoming.seal()
    incoming.discard()
    assert not spooled(tmp_path)


def test_storage_that_does_not_answer_is_unavailable_and_leaves_nothing(tmp_path: Path) -> None:
    options = {
        "endpoint_url": "http://127.0.0.1:9",
        "skip_instance_cache": True,
        "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1},
        "key": "k",
        "secret": "s",
    }
    blobs = Blobs("s3://bucket/prefix", spool_dir=tmp_path / "spool", options=options)
    # s3fs tries five times by itself, waiting longer each time.
    blobs._fs.retries = 1
    with pytest.raises(StorageUnavailable):
        put(blobs, "files/a", b"x")
    with pytest.raises(StorageUnavailable):
        list(blobs.read("files/a"))
    assert not spooled(tmp_path)


def test_bucket_that_is_not_there_is_not_mistaken_for_a_blob(endpoint: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, storage_url="s3://no-such/x", s3_endpoint=endpoint)
    blobs = open_blobs(settings)
    with pytest.raises((StorageUnavailable, NotFound)):
        put(blobs, "files/a", b"x")
    assert not blobs.exists("files/a")


def test_storage_of_an_unknown_kind_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="storage_url"):
        open_blobs(Settings(home=tmp_path, storage_url="nonsense://x"))
