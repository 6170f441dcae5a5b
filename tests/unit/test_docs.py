"""Documents stay true: the settings table, the links, the names they use."""

import base64
import re
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from maas.core.settings import Settings
from maas.gateway.webhook_sender import signature
from tests.conftest import REPOSITORY

DOCUMENTS = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")])


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += _rows(kind, f"{prefix}{name.upper()}__")
            continue
        default = field.default
        if isinstance(default, Path) and default.is_absolute():
            default = "models/ of the checkout"
        shown = "-" if default is None else f"`{default}`"
        text = " ".join((field.description or "").split())
        rows.append(f"| `{prefix}{name.upper()}` | {shown} | {text} |")
    return rows


def settings_table() -> str:
    return "\n".join(["| variable | default | what |", "|---|---|---|", *_rows(Settings, "MAAS_")])


def test_settings_table_is_what_the_code_says():
    assert settings_table() in (REPOSITORY / "docs" / "operators.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_documents_name_exist(document):
    named = re.findall(r"`((?:maas|tests|deploy|benchmarks)/[\w/]+\.py)`", document.read_text())
    missing = [name for name in named if not (REPOSITORY / name).exists()]
    assert missing == []


def test_signature_check_of_the_operators_guide_takes_what_is_sent_and_nothing_else():
    text = (REPOSITORY / "docs" / "operators.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(snippet, "operators.md", "exec"), names)
    is_genuine = names["is_genuine"]
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    for age_s, expected in ((0, True), (400, False)):
        now = int(time.time()) - age_s
        headers = {
            "webhook-id": "evt-1",
            "webhook-timestamp": str(now),
            "webhook-signature": signature(secret, "evt-1", now, "{}"),
        }
        assert is_genuine(secret, headers, b"{}") is expected
        assert not is_genuine(secret, headers, b"{} ")
