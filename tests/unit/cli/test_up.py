"""What ``maas up`` prints when it is done: a request that works, and what could not be had."""

import io

from rich.console import Console

from maas.bootstrap.up import Progress
from maas.cli.up import _Reporter
from maas.core.settings import Settings


def _printed(settings: Settings, **fields) -> str:
    console = Console(file=io.StringIO(), width=80)
    _Reporter(console, settings)(Progress("", 12.3, 2**30, **fields))
    return console.file.getvalue()


def test_first_request_is_for_the_model_that_answers_at_an_address_that_can_be_asked(tmp_path):
    settings = Settings(home=tmp_path, host="0.0.0.0", port=8123, model="not-there")
    printed = _printed(settings, chat_model="another")
    assert "Ready after 12.3 s" in printed
    assert "curl -N http://127.0.0.1:8123/v1/chat/completions" in printed
    assert '"model": "another"' in printed
    assert "not-there" not in printed


def test_without_a_chat_model_no_request_is_offered(tmp_path):
    assert "curl" not in _printed(Settings(home=tmp_path))


def test_refused_deployments_are_shown_in_full_and_it_is_not_called_ready(tmp_path):
    reason = "large: needs 30.00 GiB of 20.00 GiB; set max_model_len to [1024] " + "or less " * 12
    printed = _printed(Settings(home=tmp_path), refused=(reason.strip(),), chat_model="fine")
    assert "Ready" not in printed
    assert "Not all is up after 12.3 s" in printed
    assert f"refused  {reason.strip()}" in printed
    assert '"model": "fine"' in printed
