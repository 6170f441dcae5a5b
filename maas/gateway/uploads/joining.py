"""The parts of an upload become one blob."""

import hashlib

from pydantic import ValidationError

from maas.core.errors import Conflict, InvalidRequest, NotFound
from maas.gateway.files.received import Received
from maas.gateway.uploads.schemas import CompleteBody
from maas.store.blobs import Blobs, Incoming
from maas.store.files import blob_key_of, new_file_id
from maas.store.uploads import UploadPart, UploadRepository


class Joiner:
    """Joins parts.

    Args:
        blobs: Where they are.
        uploads: What they are parts of.
    """

    def __init__(self, blobs: Blobs, uploads: UploadRepository) -> None:
        self._blobs = blobs
        self._uploads = uploads

    def join(self, project_id: str, upload_id: str, body: bytes) -> Received | None:
        """Make the blob that a request to complete an upload asks for; may take minutes.

        Returns:
            None where the upload cannot be completed so: the route says why, unless it has
            answered the same request before.

        Raises:
            InvalidRequest: The bytes are not those that the request says.
        """
        try:
            wanted = CompleteBody.model_validate_json(body)
            parts = self._uploads.parts(project_id, upload_id, wanted.part_ids)
        except (ValidationError, NotFound, Conflict, InvalidRequest):
            return None
        incoming, file_id = self._blobs.begin(), new_file_id()
        try:
            _copy(self._blobs, parts, incoming, wanted.md5)
            facts = self._blobs.put(blob_key_of(file_id), incoming)
        except BaseException:
            incoming.discard()
            raise
        return Received(file_id, facts, "", {})


def _copy(blobs: Blobs, parts: list[UploadPart], incoming: Incoming, md5: str | None) -> None:
    # OpenAI's API checks with MD5; nothing rests on it.
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        for chunk in blobs.read(part.blob_key):
            incoming.write(chunk)
            if md5 is not None:
                digest.update(chunk)
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise InvalidRequest(f"the file's MD5 is {digest.hexdigest()}, not {md5}", param="md5")
