"""Documents stay true: the settings table, the links, the names they use."""

import base64
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

from maas.cli.main import app
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
            default = f"{default.name}/ of the checkout"
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


def test_every_metric_is_in_the_operators_guide_and_no_other():
    text = (REPOSITORY / "docs" / "operators.md").read_text()
    section = text.partition("## Metrics")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    named: set[str] = set()
    for row in rows:
        first, *others = re.findall(r"`(\w+)`", row)
        stem = first.rpartition("_")[0] if others else ""
        named |= {first, *(stem + other for other in others)}
    source = (REPOSITORY / "maas/gateway/relay/metering.py").read_text()
    pattern = r'(Counter|Histogram|Gauge)MetricFamily\(\s*"(maas_\w+)"'
    written = {
        f"{name}_total" if kind == "Counter" else name for kind, name in re.findall(pattern, source)
    }
    gauges = re.search(r"for name, text in \((.*?)\n            \)", source, re.DOTALL)
    assert gauges is not None
    written |= {f"maas_replica_{name}" for name in re.findall(r'\("(\w+)", "', gauges[1])}
    assert len(written) > 10
    assert named == written


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every ``maas`` command in a document's blocks and code spans."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}(.+)$", text, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M))
    for line in [*lines, *indented, *spans]:
        words = shlex.split(line, comments=True) if re.search(r"(^| )maas ", line) else []
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if len(words) > 1 and words[0] == "maas" and re.fullmatch(r"[a-z-]+", words[1]):
            yield words[1:]


def _check(words: list[str]) -> None:
    """Check that a command exists and takes what it is given."""
    command: Any = typer.main.get_command(app)
    path = "maas"
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return
        name, *words = words
        path = f"{path} {name}"
        assert name in command.commands, f"there is no {path}"
        command = command.commands[name]
    offered = {name for item in command.params for name in (*item.opts, *item.secondary_opts)}
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("-"):
            assert option in offered, f"{path} has no {option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_that_documents_name_exist(document):
    for words in _commands(document.read_text()):
        _check(words)


def test_commands_of_the_guides_are_found_and_wrong_ones_noticed():
    found = [words for path in DOCUMENTS for words in _commands(path.read_text())]
    assert len(found) > 40
    for wrong in (["limits", "list"], ["limit", "sett"], ["price", "set", "m", "--inputs", "2"]):
        with pytest.raises(AssertionError):
            _check(wrong)


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
