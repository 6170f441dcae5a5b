"""A client that reads slowly holds its engine back, and costs the gateway no memory."""

import json
import socket
import time

# More than all the kernel's buffers on the way hold, with the engine's side left to grow (4 MiB).
NUM_WORDS = 200_000


def _ask(gateway, path: str, body: dict) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.settimeout(20)
    encoded = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {gateway.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(encoded)}\r\n"
        "connection: close\r\n\r\n"
    )
    client.sendall(head.encode() + encoded)
    return client


def _read_all(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_slow_client_holds_the_engine_back_and_gets_every_word(gateway, engine):
    content = f"flood:{NUM_WORDS}"
    body = {
        "model": "tiny",
        "stream": True,
        "messages": [{"role": "user", "content": content}],
    }
    with _ask(gateway, "/v1/chat/completions", body) as client:
        # Longer than the engine may be silent: it is the client who waits here.
        time.sleep(3)
        assert engine.num_running == 1, "the engine could write everything: nothing held it back"
        raw = _read_all(client)
    assert raw.count(b'"content": "a"') + raw.count(b'"content":"a"') == NUM_WORDS
    assert b"data: [DONE]\n\n" in raw
    assert b'"error"' not in raw


def test_pipelined_requests_are_answered_in_order(gateway, engine):
    host, port = gateway.url.removeprefix("http://").split(":")
    raw = b""
    for word, connection in (("one", "keep-alive"), ("two", "keep-alive"), ("three", "close")):
        body = {
            "model": "tiny",
            "stream": True,
            "messages": [{"role": "user", "content": f"say:{word}"}],
        }
        encoded = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n"
            f"authorization: Bearer {gateway.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(encoded)}\r\nconnection: {connection}\r\n\r\n"
        )
        raw += head.encode() + encoded
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(raw)
        answer = _read_all(client)
    places = [answer.index(f'"{word}"'.encode()) for word in ("one", "two", "three")]
    assert places == sorted(places)
    assert answer.count(b"HTTP/1.1 200") == answer.count(b"data: [DONE]") == 3
