"""Tells failures that pass, for want of room, from those that come again."""

# As Python, torch, onnxruntime and the kernel say it.
_NO_ROOM = ("no space left", "memoryerror", "allocate memory", "bad_alloc", "bad allocation")


def is_passing(returncode: int, said: str) -> bool:
    """Say whether a process that failed may do better the next time.

    Args:
        returncode: Its own; below zero where a signal ended it, as where memory is out.
        said: The last line it wrote.
    """
    return returncode < 0 or any(words in said.lower() for words in _NO_ROOM)
