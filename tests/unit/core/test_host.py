"""Checks of the machine: each failure names what stands in the way and what to change."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from maas.core.errors import ConfigError, DiskFull, PortTaken
from maas.core.host import Listener, check_disk, check_port, find_listener, free_bytes


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_free_port_passes_and_stays_free():
    port = free_port()
    check_port("127.0.0.1", port, setting="MAAS_PORT")
    check_port("127.0.0.1", port, setting="MAAS_PORT")
    assert find_listener(port) is None


def test_port_zero_is_never_taken():
    check_port("127.0.0.1", 0, setting="MAAS_PORT")
    assert find_listener(0) is None


def test_taken_port_names_its_holder_and_the_setting(taken):
    with pytest.raises(PortTaken) as caught:
        check_port("127.0.0.1", taken, setting="MAAS_METRICS_PORT")
    message = caught.value.message
    assert f"port {taken} " in message
    assert f"(pid {os.getpid()})" in message
    assert "set MAAS_METRICS_PORT to another port" in message


def test_port_taken_on_every_address_is_taken_on_loopback_too():
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken):
            check_port("127.0.0.1", port, setting="MAAS_PORT")


def test_port_held_by_a_closed_connection_is_free():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server, _ = listener.accept()
        server.close()  # the closing side keeps the port in TIME_WAIT
        client.close()
    check_port("127.0.0.1", port, setting="MAAS_PORT")
    assert find_listener(port) is None


def test_holder_of_an_ipv6_port_is_found():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken, match=f"pid {os.getpid()}"):
            check_port("::1", port, setting="MAAS_PORT")


@pytest.mark.parametrize("host", ["192.0.2.7", "no-such-host.invalid"])
def test_address_that_is_not_this_machines_is_refused(host):
    with pytest.raises(ConfigError, match="MAAS_HOST"):
        check_port(host, free_port(), setting="MAAS_PORT")


def test_listener_is_named_by_program_and_module():
    assert Listener(1, "/usr/bin/python3.11 -m maas.bootstrap.gateway x").name == (
        "python3.11 maas.bootstrap.gateway"
    )
    assert Listener(1, "/usr/sbin/nginx").name == "nginx"
    assert Listener(1, "").name == "?"


def test_listener_is_found_with_its_command():
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1])"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", f"{code}; input()", "--marked"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        listener = find_listener(int(process.stdout.readline()))
        process.stdin.write("\n")
    assert listener is not None
    assert listener.pid == process.pid
    assert listener.command.startswith(sys.executable)
    assert listener.command.endswith("--marked")


def test_listener_found_is_this_process(taken):
    listener = find_listener(taken)
    assert listener is not None
    assert listener.pid == os.getpid()


def test_enough_room_passes_and_makes_no_folder(tmp_path):
    path = tmp_path / "a" / "b"
    check_disk(path, need_bytes=1)
    assert not path.parent.exists()


def test_too_little_room_says_how_much_is_missing(tmp_path):
    need = free_bytes(tmp_path) + 2**40
    with pytest.raises(DiskFull, match=r"GiB free, .* GiB needed; .*MAAS_HOME") as caught:
        check_disk(tmp_path / "not" / "there", need_bytes=need)
    assert str(tmp_path) in caught.value.message


def test_a_client_on_a_port_is_no_listener(taken):
    with socket.create_connection(("127.0.0.1", taken)) as client:
        assert find_listener(client.getsockname()[1]) is None
