"""The registry's way in: a checked adapter is stored, written down, and given a public name."""

import re
import secrets
import string
import tempfile
from dataclasses import dataclass
from pathlib import Path

from maas.core.errors import InvalidRequest
from maas.finetune.adapter_files import ADAPTER_NAMES, MAX_RANK, check_adapter, keep_adapter
from maas.finetune.base_modules import BaseModules
from maas.store.adapters import Adapter, AdapterRepository
from maas.store.blobs import Blobs

MAX_SUFFIX_CHARS = 64
_SUFFIX = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_ID_CHARS = string.ascii_lowercase + string.digits
_ID_LENGTH = 8


def blob_key_of(adapter_id: str) -> str:
    """Return where an adapter's files are stored."""
    return f"adapters/{adapter_id}"


def check_suffix(suffix: str) -> str:
    """Return the part of a tuned model's name that its owner chooses.

    Raises:
        InvalidRequest: It would not be one part of a name.
    """
    if len(suffix) > MAX_SUFFIX_CHARS or not _SUFFIX.fullmatch(suffix):
        raise InvalidRequest(
            f"suffix: want 1 to {MAX_SUFFIX_CHARS} letters, digits, '-', '_' or '.', beginning "
            "and ending with a letter or digit",
            param="suffix",
        )
    return suffix


def public_name(base_model_id: str, organization: str, suffix: str | None) -> str:
    """Return a new name ``ft:<base>:<org>:<suffix>:<id>``; the id makes it the only one.

    Args:
        base_model_id: The base.
        organization: Its name; what would not fit between colons is left out.
        suffix: As its owner chose it.
    """
    of = re.sub(r"[^A-Za-z0-9._-]+", "-", organization).strip("-._") or "org"
    return f"ft:{base_model_id}:{of}:{suffix or ''}:{new_name_id()}"


def new_name_id() -> str:
    """Return a random end of a name."""
    return "".join(secrets.choice(_ID_CHARS) for _ in range(_ID_LENGTH))


@dataclass(frozen=True)
class AdapterRegistry:
    """Stores adapters.

    Attributes:
        blobs: Where their files go.
        adapters: Where they are written down.
        scratch_dir: A folder on this machine's disk to work in.
    """

    blobs: Blobs
    adapters: AdapterRepository
    scratch_dir: Path

    def take(
        self,
        folder: Path,
        base_model_id: str,
        *,
        base: BaseModules | None,
        max_rank: int = MAX_RANK,
    ) -> Adapter:
        """Check an adapter, store its files and write it down; doing so twice is fine.

        The files are stored before the row, so an adapter that is written down can be had.

        Args:
            folder: The two files; nothing else may be in it.
            base_model_id: What it was tuned from.
            base: That model's modules; none where its weights are not here.
            max_rank: Largest rank that engines of it take.

        Raises:
            AdapterRefused: It cannot be served.
            DiskFull: There is no room.
        """
        facts = check_adapter(folder, base, max_rank=max_rank)
        self.scratch_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch_dir) as scratch:
            kept = Path(scratch) / "adapter"
            keep_adapter(folder, kept, base_model_id, facts)
            # What was copied is what was checked, whatever happened to the folder meanwhile.
            facts = check_adapter(kept, base, max_rank=max_rank)
            size_bytes = self.blobs.put_folder(blob_key_of(facts.id), kept, ADAPTER_NAMES)
        return self.adapters.add(
            facts.id,
            base_model_id=base_model_id,
            r=facts.r,
            target_modules=facts.target_modules,
            size_bytes=size_bytes,
        )
