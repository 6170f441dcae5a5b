"""What a request costs before the engine has it: others are answered meanwhile, and it ends."""

import asyncio
import contextlib
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from maas.core.errors import ConfigError, InvalidRequest, PromptTooLong
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.server import reading, serve
from maas.edge.runtime.server.app import EdgeServer
from maas.edge.runtime.server.reading import Readers, encoder_of
from maas.edge.runtime.server.serve import open_served
from maas.edge.runtime.server.served import Served, Serving
from maas.edge.runtime.server.templates import ChatTemplate, load_template
from tests.fakes.edge_engine import FakeEdgeEngine

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
JSON = {"response_format": {"type": "json_object"}}
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(tiny: Path) -> Iterator[Served]:
    served = open_served(tiny, "tiny", EngineOptions(num_threads=1, enable_spinning=False))
    yield served
    served.engine.close()


class SlowTemplate(ChatTemplate):
    """Renders when it is told to."""

    def __init__(self) -> None:
        super().__init__("x", {})
        self.begins, self.may_end = threading.Event(), threading.Event()

    def render(self, messages, tools) -> str:
        self.begins.set()
        assert self.may_end.wait(10)
        return super().render(messages, tools)


class BrokenTemplate(ChatTemplate):
    """Fails as nobody thought of."""

    def __init__(self) -> None:
        super().__init__("x", {})

    def render(self, messages, tools) -> str:
        raise LookupError("odd")


@contextlib.asynccontextmanager
async def device(served: Served) -> AsyncIterator[TestClient]:
    async with TestClient(TestServer(EdgeServer(Serving(served)).make_app())) as client:
        yield client


async def test_others_are_answered_while_a_chat_is_rendered(served):
    template = SlowTemplate()
    async with device(replace(served, template=template)) as client:
        chat = asyncio.create_task(client.post(PATH, json=CHAT))
        assert await asyncio.to_thread(template.begins.wait, 10)
        assert (await client.get("/health")).status == 200
        assert not chat.done()
        template.may_end.set()
        assert (await chat).status == 200


def test_encoding_leaves_other_threads_their_turns(served):
    encode = encoder_of(replace(served, max_token_chars=10**6), "prompt")
    text = "hello world " * 20_000
    encoding = threading.Thread(target=encode, args=(text, False))
    encoding.start()
    num_turns = 0
    while encoding.is_alive():
        time.sleep(0.001)
        num_turns += 1
    assert num_turns > 10


async def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(served):
    most = served.engine.info.max_model_len * served.max_token_chars
    for param in ("messages", "prompt"):
        encode = encoder_of(served, param)
        assert len(encode("x" * most, False)) == most
        with pytest.raises(PromptTooLong) as caught:
            encode("x" * (most + 1), False)
        assert caught.value.context["param"] == param


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) if false %}{{ loop.length }}"
        "{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% for a in [1] * 30 recursive %}{% if loop.depth < 30 %}{{ loop([1] * 30) }}{% endif %}"
        "{% endfor %}",
        "{{ 9 ** messages | length ** 99999999 }}",
        "{{ 'x' * 9999999999 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_without_end_is_ended(monkeypatch, source):
    monkeypatch.setattr("maas.edge.runtime.server.templates._MAX_RENDER_S", 0.1)
    template = ChatTemplate(source, {})
    with pytest.raises(InvalidRequest, match="the chat template refuses"):
        template.render([{"role": "user", "content": "x"}], None)


BIG = "{% set big = 'x' * 1000000 %}"
GROW = "{% set ns = namespace(x='x' * 1000000) %}{% for i in range(40) %}"


@pytest.mark.parametrize(
    "source",
    [
        GROW + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        GROW + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | string }}",
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ 'x' ~ ns.x }}",
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ '%s' % (ns.x,) }}",
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ 'x'.join(ns.x) }}",
        GROW + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns }}",
        GROW + "{% endfor %}{% for i in range(1000) %}{{ ns.x }}{% endfor %}",
        GROW + "{% endfor %}{% macro f() %}{% for i in range(99) %}{{ ns.x }}{% endfor %}"
        "{% endmacro %}{% set x = f() %}",
        GROW + "{% endfor %}{% set all = namespace(x=[]) %}{% for i in range(1000) %}"
        "{% set all.x = all.x + [ns.x[1:]] %}{% endfor %}",
        GROW + "{% endfor %}{{ ns.x | replace('x', ns.x) }}",
        GROW + "{% endfor %}{{ ns.x.replace('', ns.x) }}",
        GROW + "{% endfor %}{{ range(1000) | join(ns.x) }}",
        GROW + "{% endfor %}{{ ns.x.join(range(1000) | map('string')) }}",
        GROW + "{% endfor %}{{ ('{0}' * 100).format(ns.x) }}",
        GROW + "{% endfor %}{{ ('%s' * 100) % ((ns.x,) * 100) }}",
        *("{{ 'x' | center(10 * 99999999) }}", "{{ 'x'.ljust(999999999) }}"),
        *(
            "{{ 'x' | center(999999999) }}",
            "{{ '%999999999d' % 1 }}",
            "{{ '%*d' % (999999999, 1) }}",
        ),
        *("{{ '{:999999999}'.format(1) }}", "{{ '{:{}}'.format(1, 999999999) }}"),
        *("{{ '%999999999d' | format(1) }}", "{{ 'a\nb' | indent(999999999) }}"),
        *("{{ '\t'.expandtabs(999999999) }}", "{{ (1).to_bytes(999999999) }}"),
        "{{ [[1]] | tojson(indent=999999999) }}",
        "{{ '{:>{}}'.format('x', '60000000000') }}",
        "{{ '{0:>{1[0]}}'.format('x', [60000000000]) }}",
        *("{{ '{:٦٠٠٠٠٠٠٠٠٠٠}'.format(1) }}", "{{ '%.*f' % (999999999, 1) }}"),
        *("{{ '%(x)999999999d' % {'x': 1} }}", "{{ '%((x))999999999d' % {'(x)': 1} }}"),
        *("{{ '%*d' | format(999999999, 1) }}", "{{ '%999999999d' is odd }}"),
        "{{ '%999999999d' is divisibleby(1) }}",
        "{{ ('a\r' * 500000) | indent('x' * 1000) }}",
        BIG + "{{ [{'a': big}.values()] * 100000 }}",
        BIG + "{{ [{'a': big}.items()] * 100000 }}",
        BIG + "{{ [{big: 1}.keys()] * 100000 }}",
        BIG + "{{ [(big | e).upper] * 100000 }}",
        BIG + "{{ raise_exception([big] * 100000) }}",
        BIG + "{{ strftime_now(big) }}",
        BIG + "{{ ([[1] * 1000000] * 1000000) | select | sum(start=[]) }}",
        "{{ [0x" + "f" * 1000 + "] * 1000000 }}",
    ],
)
def test_a_template_that_makes_too_much_is_ended_before_it_is_made(source):
    template = ChatTemplate(source, {})
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="the chat template refuses"):
            template.render([{"role": "user", "content": "x"}], None)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


TWICE = (
    "{% set ns = namespace(a=(1,), b=(1,)) %}{% for i in range(40) %}"
    "{% set ns.a = (ns.a, ns.a) %}{% set ns.b = (ns.b, ns.b) %}{% endfor %}"
)
LONG = BIG + "{% set ones = [1] * 1000000 %}"


@pytest.mark.parametrize(
    "source",
    [
        TWICE + "{{ ns.a == ns.b }}",
        TWICE + "{{ ns.a < ns.b }}",
        TWICE + "{{ ns.a in [ns.b] }}",
        TWICE + "{{ ns.a in ([ns.b] | select) }}",
        TWICE + "{{ ns.a in ([ns.b] | reverse) }}",
        TWICE + "{{ 1 < 2 != ns.a == ns.b }}",
        TWICE + "{{ ns.a is eq ns.b }}",
        TWICE + "{{ ns.a is in [ns.b] }}",
        TWICE + "{{ ns.a is lower }}",
        TWICE + "{{ [ns.a] | select('==', ns.b) | list }}",
        *(TWICE + "{{ [ns.a, ns.b] | " + name + " }}" for name in ("sort", "max", "unique | list")),
        TWICE + "{{ [ns.a, ns.b] | select | min }}",
        TWICE + "{{ [ns.a, ns.b] | reverse | sort }}",
        TWICE + "{{ [namespace(x=ns.a), namespace(x=ns.b)] | max(attribute='x') }}",
        TWICE + "{{ [{'x': ns.a}, {'x': ns.b}] | groupby('x') }}",
        TWICE + "{{ [ns.a].index(ns.b) }}",
        TWICE + "{{ [ns.a].count(ns.b) }}",
        TWICE + "{{ {}.get(ns.a) }}",
        TWICE + "{{ {}[ns.a] }}",
        TWICE + "{{ {ns.a: 1} }}",
        TWICE + "{{ dict([[ns.a, 1]] | select) }}",
        TWICE + "{{ {}.keys() - [ns.a] }}",
        TWICE + "{% for i in [1] %}{{ loop.changed(ns.a) }}{{ loop.changed(ns.b) }}{% endfor %}",
    ],
)
def test_what_nests_without_bound_is_not_compared_or_hashed(monkeypatch, source):
    monkeypatch.setattr("maas.edge.runtime.server.amounts._MAX_PARTS", 10_000)
    with pytest.raises(InvalidRequest, match="the chat template refuses"):
        ChatTemplate(source, {}).render([], None)


@pytest.mark.parametrize(
    "source",
    [
        *("{{ 1 | round(1000000000, 'ceil') }}", "{{ 1 | round(-1000000000) }}"),
        "{{ [1] | map('round', 1000000000, 'ceil') | list }}",
        LONG + "{{ ([ones] * 1000000) | map('max') | list }}",
        LONG + "{{ ([ones] * 1000000) | map('sum') | list }}",
        LONG + "{{ ([ones] * 1000) | map('select') | map('sum') | list }}",
        BIG + "{{ big.strip('y' * 1000000 ~ 'x') }}",
        BIG + "{{ big | trim('y' * 1000000 ~ 'x') }}",
        BIG + "{{ big.rfind('y' ~ big[:500000]) }}",
        *(BIG + "{{ big | wordwrap(1) }}", "{{ ('<!---->' * 100000) | striptags }}"),
        "{{ (('<!---->' * 100000) | safe).striptags() }}",
        "{{ 0x" + "f" * 100000 + " // 3 }}",
        "{{ (1).from_bytes([255] * 1000000) }}",
    ],
)
def test_a_template_that_does_much_at_once_is_ended_before_it_is_done(monkeypatch, source):
    monkeypatch.setattr("maas.edge.runtime.server.templates._MAX_RENDER_S", 0.5)
    started = time.thread_time()
    with pytest.raises((InvalidRequest, ConfigError), match="the chat template"):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x"}], None)
    assert time.thread_time() - started < 4


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%d' % 1764375000 }}", "1764375000"),
        ("{{ '{}'.format(1764375000) }}", "1764375000"),
        ("{{ '%s' | format(1764375000) }}", "1764375000"),
        ("{{ 'id 99999999 %s' % 'x' }}", "id 99999999 x"),
        ("{{ 'id 99999999 {}'.format('x') }}", "id 99999999 x"),
        ("{{ '%*d %(%5d' % (3, 1, 2) if false else '%-5d|%%' % 7 }}", "7    |%"),
        ("{{ '{:>5}{a!s:.2}{{9}}'.format(1, a='xyz') }}", "    1xy{9}"),
        ("{{ 42.55 | round(1, 'floor') }}{{ 7 | round }}", "42.57"),
        ("{{ [1, 2] | select | sum }}{{ [{'a': 1.5}] | sum(attribute='a', start=1) }}", "32.5"),
        ("{{ {'a': 1}.values() | list }}{{ {'a': [1]}.items() }}", "[1]dict_items([('a', [1])])"),
        ("{{ [1] == [1] }}{{ 1 < 2 < 3 }}{{ [2] in [[1], [2]] }}", "TrueTrueTrue"),
        ("{{ 'b' in (['a', 'b'] | map('lower')) }}{{ u == none }}{{ 3 is odd }}", "TrueFalseTrue"),
        ("{% set x = 'b' %}{{ x in ['a', x] | map('lower') }}{{ x is in ['b'] }}", "TrueTrue"),
        ("{{ ['b', 'a'] | sort }}{{ [1, 1] | unique | list }}{{ [1, 3] | max }}", "['a', 'b'][1]3"),
        ("{{ (['b', 'a'] | select | sort)[0] }}{{ [1, 2] | reverse | first }}", "a2"),
        ("{% set k = 'x' %}{{ {k: 1}[k] }}{{ {(1, 2): 3}[(1, 2)] }}{{ 7 // 2 - 1 }}", "132"),
        ("{% set ns = namespace(n=none) %}{{ ns.n == ns }}{{ [5].index(5) }}", "False0"),
        ("{{ ' x\n'.strip() }}{{ 'a</t>b'.rsplit('</t>', 1)[-1] }}{{ 'a,b'.rfind(',') }}", "xb1"),
    ],
)
def test_what_makes_little_is_not_refused(source, text):
    assert ChatTemplate(source, {}).render([], None) == text


def test_what_templates_do_with_texts_they_still_do():
    source = (
        "{{ 'a' ~ 1 ~ [2] }};{{ 'a' + 'b' }};{{ [1] + [2] }};{{ 7 % 4 }};"
        "{{ '%s-%03d' % ('a', 7) }};"
        "{{ '%s' | format('b') }};{{ '{}{x}'.format(1, x=2) }};{{ 'abc'[1:] }};{{ [1, 2][::-1] }};"
        "{{ ['a', 1] | join(',') }};{{ [{'a': 1}, {'a': 2}] | join('/', attribute='a') }};"
        "{{ ','.join(['x', 'y']) }};{{ 'a b'.split(' ') | list }};{{ 'a\nb' | indent(2) }};"
        "{{ 'aXb'.replace('X', '-') | upper }};{{ ' x ' | trim }};{{ 'x' | center(5) }};"
        "{{ {'a': [1, none]} | tojson }};{{ [1] | tojson(indent=2) }};"
        "{{ none }};{{ true }};{{ u }};"
        "{{ [1, 2] | sum }};{{ '3' | int + 1 }};{{ 'ab' | reverse | string }};{{ '<' | e }}"
    )
    assert ChatTemplate(source, {}).render([], None) == (
        "a1[2];ab;[1, 2];3;a-007;b;12;bc;[2, 1];a,1;1/2;x,y;['a', 'b'];a\n  b;A-B;x;  x  ;"
        '{"a": [1, null]};[\n  1\n];None;True;;3;4;ba;&lt;'
    )


def test_loops_know_what_they_knew():
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
        "{{ loop.nextitem }}{% if loop.first %}{% continue %}{% endif %};{% endfor %}"
        "{% for m in [] %}{% else %}none{% endfor %}{{ '-' * 3 }}{{ 2 * 3 }}"
    )
    assert ChatTemplate(source, {}).render(["a", "b"], None) == "1/2Falseb2/2True;none---6"


async def test_what_nobody_thought_of_is_a_body_too(served, caplog):
    async with device(replace(served, template=BrokenTemplate())) as client:
        answer = await client.post(PATH, json=CHAT)
        assert answer.status == 500
        assert (await answer.json())["error"]["code"] == "internal_error"
    assert "odd" in caplog.text


async def test_arguments_nested_too_deep_are_refused(served):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" * 3000}}
    messages = [*CHAT["messages"], {"role": "assistant", "tool_calls": [call]}]
    async with device(served) as client:
        answer = await client.post(PATH, json={**CHAT, "messages": messages})
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == "malformed_body"


def test_a_template_that_cannot_be_read_opens_no_engine(tiny, tmp_path, monkeypatch):
    for path in tiny.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    opened: list[Path] = []
    monkeypatch.setattr(serve, "open_engine", lambda folder, _: opened.append(folder))
    with pytest.raises(ConfigError, match="the chat template is wrong"):
        open_served(tmp_path, "tiny", EngineOptions())
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_template(tmp_path)
    assert opened == []


class SlowGrammars(FakeEdgeEngine):
    """Compiles grammars when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begins, self.may_end = threading.Event(), threading.Event()

    def compile_grammar(self, text: str) -> None:
        self.begins.set()
        assert self.may_end.wait(10)

    def knows_grammar(self, text: str) -> bool:
        return text == "known"


@pytest.fixture
def slow() -> Iterator[SlowGrammars]:
    engine = SlowGrammars()
    yield engine
    engine.may_end.set()


async def test_others_are_answered_while_a_grammar_is_compiled(served, slow):
    async with device(replace(served, engine=slow)) as client:
        held = asyncio.create_task(client.post(PATH, json={**CHAT, **JSON}))
        assert await asyncio.to_thread(slow.begins.wait, 10)
        assert (await client.post(PATH, json=CHAT)).status == 200
        assert not held.done()
        slow.may_end.set()
        assert (await held).status == 200


async def test_a_grammar_that_takes_too_long_is_refused_and_who_waits_for_it_is_told_later(
    served, slow, monkeypatch
):
    monkeypatch.setattr(reading, "_MAX_COMPILE_S", 0.2)
    async with device(replace(served, engine=slow)) as client:
        asked = [client.post(PATH, json={**CHAT, **JSON}) for _ in range(reading._NUM_GRAMMARS + 1)]
        answers = await asyncio.gather(*asked)
        assert sorted(answer.status for answer in answers) == [400, 400, 429]
        refused = next(answer for answer in answers if answer.status == 400)
        assert "was not compiled within" in (await refused.json())["error"]["message"]
        waited = next(answer for answer in answers if answer.status == 429)
        assert int(waited.headers["Retry-After"]) > 0


async def test_a_grammar_that_is_known_waits_for_no_other(slow):
    readers = Readers()
    held = [asyncio.create_task(readers.compile(slow, f"new {n}")) for n in range(3)]
    assert await asyncio.to_thread(slow.begins.wait, 10)
    await asyncio.wait_for(readers.compile(slow, "known"), 1)
    assert not any(task.done() for task in held)
    slow.may_end.set()
    await asyncio.gather(*held)


async def test_the_time_a_grammar_waited_is_not_its_own(slow, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_COMPILE_S", 1.0)
    readers, last = Readers(), SlowGrammars()
    held = [readers.compile(slow, f"slow {n}") for n in range(reading._NUM_GRAMMARS)]
    first = asyncio.gather(*held)
    assert await asyncio.to_thread(slow.begins.wait, 10)
    waiting = asyncio.create_task(readers.compile(last, "last"))
    await asyncio.sleep(0.6)
    slow.may_end.set()
    await first
    await asyncio.sleep(0.6)
    assert not waiting.done()
    last.may_end.set()
    await waiting


async def test_a_grammar_whose_asker_is_gone_is_not_begun(slow):
    readers, last = Readers(), SlowGrammars()
    held = [readers.compile(slow, f"slow {n}") for n in range(reading._NUM_GRAMMARS)]
    first = asyncio.gather(*held)
    assert await asyncio.to_thread(slow.begins.wait, 10)
    waiting = asyncio.create_task(readers.compile(last, "last"))
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.wait([waiting])
    slow.may_end.set()
    await first
    await readers.compile(slow, "next")
    assert not last.begins.is_set()


async def test_a_schema_that_is_too_large_is_refused_with_its_field(served):
    schema = {"enum": [f"value {index}" for index in range(20_000)]}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with device(served) as client:
        answer = await client.post(PATH, json={**CHAT, "response_format": asked})
        assert answer.status == 400
        error = (await answer.json())["error"]
        assert (error["param"], "at most" in error["message"]) == ("response_format", True)
