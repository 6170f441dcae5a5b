"""Chat templates and what is beside them: wrong ones are one clear error, whatever is wrong."""

from pathlib import Path

import pytest

from maas.core.errors import ConfigError, InvalidRequest
from maas.edge.runtime.server.templates import ChatTemplate, load_template

USER = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    "data",
    [
        *(b"{", b"[]", b"3", b"\xff\xfe{}", b"[" * 100_000),
        *(b'{"bos_token":{"a":1}}', b'{"chat_template":3}', b'{"chat_template":[{"a":"b"}]}'),
    ],
)
def test_what_is_said_of_a_tokenizer_and_cannot_be_read_is_refused(
    tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(data)
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: cannot be read"):
        load_template(tmp_path)


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"chat_template\.jinja: cannot be read"):
        load_template(tmp_path)


@pytest.mark.parametrize("source", ["{% if", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"])
def test_a_template_that_is_none_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="the chat template is wrong"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    "source",
    [
        *("{{ 1/0 }}", "{{ 10.0 ** 1000 }}", "{{ {}|first }}{{ raise_exception('no') }}"),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ [1].index(2) }}",
    ],
)
def test_a_template_that_fails_refuses_the_messages(source: str) -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages"):
        ChatTemplate(source, {}).render(USER, None)


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        '{"chat_template":[{"name":"x","template":"x"},{"name":"default","template":"d"}]}'
    )
    assert load_template(tmp_path).render(USER, None) == "d"
