"""Tuned models on the onnx engine: the base with the adapter merged, made when it is first held.

The engine runs it as a second model in the same process, so a tuned model costs the memory of its
base; where there is none left the engine says so, and the reason is written beside the adapter.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from maas.edge.export.form import form_dir, prepare_form
from maas.serving.adapters import Shelf


@dataclass(frozen=True)
class FormShelf:
    """Gives the ONNX form of a base with an adapter.

    Attributes:
        adapters: Where adapters come from.
        model_dir: The base's weights.
        forms_dir: Folder of all forms.
    """

    adapters: Shelf
    model_dir: Path
    forms_dir: Path

    def fetch(self, adapter_id: str) -> Path:
        """Return the folder of a form; half a minute for one that was never here.

        Raises:
            AdapterRefused: The adapter cannot be served.
            EngineError: It has no ONNX form.
            NotFound: It is not stored.
            DiskFull: There is no room for it.
        """
        folder = self.adapters.fetch(adapter_id)
        return prepare_form(self.model_dir, self.forms_dir, adapter_dir=folder)

    def forget(self, adapter_id: str) -> None:
        """Remove this machine's copy of the adapter, and its form."""
        folder = self.adapters.fetch(adapter_id)
        form = form_dir(self.model_dir, self.forms_dir, folder)
        shutil.rmtree(form, ignore_errors=True)
        self.adapters.forget(adapter_id)


def shelf_for(engine: str, adapters: Shelf, *, model_dir: Path, forms_dir: Path) -> Shelf:
    """Return the shelf an engine loads adapters from."""
    return FormShelf(adapters, model_dir, forms_dir) if engine == "onnx" else adapters
