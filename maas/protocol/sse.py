"""Server-sent events, as far as the API uses them: ``data:`` lines ended by an empty line."""

EVENT_END = b"\n\n"
DONE_EVENT = b"data: [DONE]\n\n"
DATA_PREFIX = b"data:"


def data_event(payload: bytes) -> bytes:
    """Return one event with this payload; it must hold no newline."""
    return b"data: " + payload + EVENT_END


def data_of(event: bytes) -> bytes | None:
    """Return the payload of an event's ``data:`` line, or none where it has none (a comment)."""
    for line in event.splitlines():
        if line.startswith(DATA_PREFIX):
            return line[len(DATA_PREFIX) :].strip()
    return None
