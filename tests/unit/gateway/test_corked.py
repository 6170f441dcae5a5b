"""Writes of one turn leave together, in order, and are never lost."""

import asyncio

from maas.gateway.corked import MAX_CORKED_BYTES, Cork, CorkedTransport


class FakeTransport(asyncio.Transport):
    """Notes what it is told."""

    def __init__(self, log: list[tuple[str, bytes]], name: str = "a") -> None:
        super().__init__()
        self._log, self._name, self._is_closing = log, name, False

    def write(self, data):
        self._log.append((self._name, bytes(data)))

    def close(self):
        self._is_closing = True
        self._log.append((self._name, b"<close>"))

    def abort(self):
        self._is_closing = True

    def is_closing(self):
        return self._is_closing

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def set_protocol(self, protocol):
        pass


async def test_writes_of_a_turn_are_one_write_at_its_end():
    log: list[tuple[str, bytes]] = []
    cork = Cork(asyncio.get_running_loop())
    one, two = (CorkedTransport(FakeTransport(log, name), cork) for name in "ab")
    one.write(b"head ")
    two.write(b"other")
    one.write(b"body")
    assert log == []
    await asyncio.sleep(0)
    assert log == [("a", b"head body"), ("b", b"other")]
    one.write(b"next turn")
    await asyncio.sleep(0)
    assert log[2:] == [("a", b"next turn")]


async def test_closing_writes_first():
    log: list[tuple[str, bytes]] = []
    transport = CorkedTransport(FakeTransport(log), Cork(asyncio.get_running_loop()))
    transport.write(b"last words")
    transport.close()
    await asyncio.sleep(0)
    assert log == [("a", b"last words"), ("a", b"<close>")]


async def test_a_lot_is_written_at_once():
    log: list[tuple[str, bytes]] = []
    transport = CorkedTransport(FakeTransport(log), Cork(asyncio.get_running_loop()))
    transport.write(bytes(MAX_CORKED_BYTES + 1))
    assert len(log) == 1
    await asyncio.sleep(0)
    assert len(log) == 1


async def test_nothing_is_written_to_a_connection_that_is_gone():
    log: list[tuple[str, bytes]] = []
    transport = CorkedTransport(FakeTransport(log), Cork(asyncio.get_running_loop()))
    transport.write(b"too late")
    transport.abort()
    await asyncio.sleep(0)
    assert log == []
