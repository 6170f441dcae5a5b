"""The write-ahead log: what a kill leaves of it, and who may touch it."""

import errno
import os

import msgspec
import pytest

from maas.core.errors import DiskFull
from maas.ledger import wal
from maas.ledger.entries import Dropped, Opened, Progressed
from maas.ledger.wal import Position, WriteAheadLog

from .conftest import PAYER, PRICE


def opened(name: str) -> Opened:
    return Opened(name, 0.0, PAYER, "req", "/v1/completions", "m", "default", PRICE.id, 5)


def test_what_was_open_is_read_with_what_was_delivered(folder):
    log = WriteAheadLog(folder, "gw")
    log.append(opened("a"))
    log.append(opened("b"))
    log.append(Progressed("a", 7))
    log.append(Dropped("b"))
    assert wal.read(folder, "gw", Position()).orphans == ((opened("a"), 7),)
    log.close(delete=True)
    assert list(folder.iterdir()) == []


def test_logs_of_the_version_before_are_read(folder, monkeypatch):
    log = WriteAheadLog(folder, "gw")
    encode = wal._encoder.encode

    class Older:
        def encode(self, record: Opened) -> bytes:
            *fields, base = msgspec.json.decode(encode(record))
            assert base == ""
            return msgspec.json.encode(fields)

    monkeypatch.setattr(wal, "_encoder", Older())
    log.append(opened("a"))
    assert wal.read(folder, "gw", Position()).orphans == ((opened("a"), 0),)
    log.close(delete=True)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_record_that_a_kill_tore_is_dropped(folder, cut):
    log = WriteAheadLog(folder, "gw")
    log.append(opened("a"))
    whole = log.position.offset
    log.append(opened("b"))
    path = folder / "gw.0.wal"
    data = bytearray(path.read_bytes())
    # Copied in part: the rest is as it was taken from the disk.
    data[log.position.offset - cut :] = bytes(len(data) - log.position.offset + cut)
    path.write_bytes(data)
    remains = wal.read(folder, "gw", Position())
    assert [record.id for record, _ in remains.orphans] == ["a"]
    assert remains.end > Position(0, whole)
    log.close(delete=True)


def test_a_log_grows_as_far_as_it_must(folder):
    log = WriteAheadLog(folder, "gw")
    ids = [f"{number:0500}" for number in range(8000)]
    for id_ in ids:
        log.append(opened(id_))
    assert [record.id for record, _ in wal.read(folder, "gw", Position()).orphans] == ids
    log.close(delete=True)


def test_a_full_disk_is_an_error_and_the_old_segment_goes_on(folder, monkeypatch):
    log = WriteAheadLog(folder, "gw")
    log.append(opened("a"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFull, match="No space left"):
        log.rotate([opened("a")])
    log.append(opened("b"))
    big = opened("c" * (wal.MAX_SEGMENT_BYTES + 1))
    with pytest.raises(DiskFull, match="No space left"):
        log.append(big)
    found = {record.id for record, _ in wal.read(folder, "gw", Position()).orphans}
    assert {"a", "b"} <= found
    log.close(delete=True)


def test_a_lock_that_a_neighbour_deletes_meanwhile_is_taken_anew(folder, monkeypatch):
    folder.mkdir()
    flock, calls = wal.fcntl.flock, []

    def raced(file: int, operation: int) -> None:
        if not calls:
            calls.append(1)
            # Between our opening the file and our lock, a recovery finds a log of nobody.
            for spender_id, _ in wal.abandoned(folder):
                wal.remove(folder, spender_id)
        flock(file, operation)

    monkeypatch.setattr(wal.fcntl, "flock", raced)
    log = WriteAheadLog(folder, "gw")
    log.append(opened("a"))
    assert list(wal.abandoned(folder)) == []
    log.close(delete=False)
    assert [name for name, _ in wal.abandoned(folder)] == ["gw"]
