"""Whatever is wrong with training data is told: line, field, why, and how to mend it."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maas.finetune.data import check as check_module
from maas.finetune.data.check import MAX_LINE_BYTES, Checker, Measured
from maas.finetune.data.problems import MAX_LISTED_PER_CODE, DataReport
from tests.conftest import REPOSITORY

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def chat(*messages: Any, **more: Any) -> bytes:
    return json.dumps({"messages": [*messages], **more}).encode()


def call(**fields: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"} | fields.pop("function", {})
    call = {"id": "c1", "type": "function", "function": function} | fields
    return {"role": "assistant", "tool_calls": [call]}


def result(call_id: Any = "c1") -> dict[str, Any]:
    return {"role": "tool", "content": "1", "tool_call_id": call_id}


def pair(**fields: Any) -> bytes:
    good = {
        "input": {"messages": [USER]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [{**ANSWER, "content": "Go away"}],
    }
    return json.dumps({k: v for k, v in (good | fields).items() if v is not None}).encode()


GOOD = [chat({**USER, "content": f"Number {n}"}, ANSWER) for n in range(10)]
# One line that is wrong -> the kind of problem, and its field.
BAD_LINES: dict[str, tuple[bytes, str, str]] = {
    "not json": (b"{", "not_json", ""),
    "two objects": (GOOD[0] + GOOD[1], "not_json", ""),
    "single quotes": (b"{'messages': []}", "not_json", ""),
    "NaN": (b'{"messages": NaN}', "not_json", ""),
    "infinite number": (b'{"messages": 1e999}', "not_json", ""),
    "huge integer": (b'{"messages": ' + b"9" * 5000 + b"}", "not_json", ""),
    "not an object": (b"[1]", "not_an_object", ""),
    "a string": (b'"hello"', "not_an_object", ""),
    "repeated key": (b'{"messages": [], "messages": []}', "repeated_key", "messages"),
    "BOM in mid file": (b"\xef\xbb\xbf" + GOOD[0], "bom", ""),
    "NUL": (GOOD[0].replace(b"Hello", b"He\0lo"), "nul", ""),
    "Latin-1": (GOOD[0].replace(b"Hello", b"Caf\xe9"), "bad_utf8", ""),
    "half an emoji": (chat(USER, {**ANSWER, "content": "\ud83d"}), "half_character", ""),
    "deep": (b'{"a":' * 100 + b"1" + b"}" * 100, "too_deep", ""),
    "deep lists": (b"[" * 10_000, "too_deep", ""),
    "long line": (b'{"messages": "' + b"x" * MAX_LINE_BYTES + b'"}', "line_too_long", ""),
    "unknown top field": (chat(USER, ANSWER, prompt=1), "unknown_field", "prompt"),
    "completion format": (b'{"prompt": "a", "completion": "b"}', "no_messages", "messages"),
    "no messages": (b'{"messages": []}', "no_messages", "messages"),
    "messages no list": (b'{"messages": {}}', "no_messages", "messages"),
    "message no object": (chat("hi", ANSWER), "bad_message", "messages[0]"),
    "name no string": (chat({**USER, "name": 1}, ANSWER), "bad_message", "messages[0].name"),
    "unknown message field": (
        chat({**USER, "text": "x"}, ANSWER),
        "unknown_field",
        "messages[0].text",
    ),
    "unknown role": (chat({**USER, "role": "human"}, ANSWER), "bad_role", "messages[0].role"),
    "role no string": (chat({**USER, "role": ["user"]}, ANSWER), "bad_role", "messages[0].role"),
    "no role": (chat({"content": "a"}, ANSWER), "bad_role", "messages[0].role"),
    "weight of user": (chat({**USER, "weight": 0}, ANSWER), "bad_weight", "messages[0].weight"),
    "weight 0.5": (chat(USER, {**ANSWER, "weight": 0.5}), "bad_weight", "messages[1].weight"),
    "weight true": (chat(USER, {**ANSWER, "weight": True}), "bad_weight", "messages[1].weight"),
    "all of weight 0": (chat(USER, {**ANSWER, "weight": 0}), "no_answer", "messages"),
    "no assistant": (chat(USER), "no_answer", "messages"),
    "empty user turn": (
        chat({**USER, "content": " "}, ANSWER),
        "empty_turn",
        "messages[0].content",
    ),
    "empty answer": (chat(USER, {**ANSWER, "content": ""}), "empty_turn", "messages[1].content"),
    "no parts": (chat({**USER, "content": []}, ANSWER), "empty_turn", "messages[0].content"),
    "content null": (chat(USER, {"role": "assistant"}), "bad_content", "messages[1].content"),
    "content number": (chat({**USER, "content": 5}, ANSWER), "bad_content", "messages[0].content"),
    "image": (
        chat({**USER, "content": [{"type": "image_url"}]}, ANSWER),
        "not_text",
        "messages[0].content[0]",
    ),
    "part without text": (
        chat({**USER, "content": [{"type": "text"}]}, ANSWER),
        "bad_content",
        "messages[0].content[0].text",
    ),
    "late system": (
        chat(USER, ANSWER, {"role": "system", "content": "x"}, USER, ANSWER),
        "late_instruction",
        "messages[2]",
    ),
    "assistant first": (chat(ANSWER, USER, ANSWER), "no_question", "messages"),
    "two answers": (chat(USER, ANSWER, ANSWER), "two_in_a_row", "messages[2]"),
    "two questions": (chat(USER, USER, ANSWER), "two_in_a_row", "messages[1]"),
    "ends with user": (chat(USER, ANSWER, USER), "unanswered", "messages"),
    "many messages": (chat(*[USER, ANSWER] * 2000), "too_many_messages", "messages"),
    "tools no list": (chat(USER, ANSWER, tools={}), "bad_tools", "tools"),
    "tool without name": (chat(USER, ANSWER, tools=[{"function": {}}]), "bad_tools", "tools[0]"),
    "tool twice": (chat(USER, ANSWER, tools=[TOOL, TOOL]), "bad_tools", "tools[1]"),
    "parameters no object": (
        chat(USER, ANSWER, tools=[{"function": {"name": "f", "parameters": 1}}]),
        "bad_tools",
        "tools[0].function.parameters",
    ),
    "parallel_tool_calls": (
        chat(USER, ANSWER, parallel_tool_calls="no"),
        "bad_tools",
        "parallel_tool_calls",
    ),
    "unknown tool": (
        chat(USER, call(function={"name": "g"}), result(), ANSWER, tools=[TOOL]),
        "unknown_tool",
        "messages[1].tool_calls[0].function.name",
    ),
    "call without tools": (
        chat(USER, call(), result(), ANSWER),
        "unknown_tool",
        "messages[1].tool_calls[0].function.name",
    ),
    "arguments object": (
        chat(USER, call(function={"arguments": {}}), result(), ANSWER, tools=[TOOL]),
        "bad_arguments",
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments list": (
        chat(USER, call(function={"arguments": "[1]"}), result(), ANSWER, tools=[TOOL]),
        "bad_arguments",
        "messages[1].tool_calls[0].function.arguments",
    ),
    "call of another type": (
        chat(USER, call(type="custom"), result(), ANSWER, tools=[TOOL]),
        "bad_call",
        "messages[1].tool_calls[0].type",
    ),
    "call without id": (
        chat(USER, call(id=None), ANSWER, tools=[TOOL]),
        "bad_call",
        "messages[1].tool_calls[0].id",
    ),
    "calls no list": (
        chat(USER, {**ANSWER, "tool_calls": {"id": 1}}),
        "bad_call",
        "messages[1].tool_calls",
    ),
    "call by user": (
        chat({**USER, "tool_calls": []}, ANSWER),
        "bad_call",
        "messages[0].tool_calls",
    ),
    "answer to no call": (
        chat(USER, call(), result("c2"), ANSWER, tools=[TOOL]),
        "unknown_call",
        "messages[2].tool_call_id",
    ),
    "call not answered": (
        chat(USER, call(), ANSWER, tools=[TOOL]),
        "open_call",
        "messages[2]",
    ),
    "the same again": (GOOD[3], "duplicate", ""),
}
BAD_PAIRS: dict[str, tuple[bytes, str, str]] = {
    "no input": (pair(input=None), "no_input", "input"),
    "input unknown": (pair(input={"messages": [USER], "x": 1}), "unknown_field", "input.x"),
    "no output": (pair(preferred_output=None), "no_output", "preferred_output"),
    "output string": (pair(preferred_output="Hello"), "no_output", "preferred_output"),
    "output by user": (pair(preferred_output=[USER]), "no_answer", "preferred_output"),
    "same": (pair(non_preferred_output=[ANSWER]), "same_outputs", ""),
    "broken call": (
        pair(preferred_output=[{"role": "assistant", "tool_calls": [5]}]),
        "bad_call",
        "preferred_output.tool_calls[0]".replace("output.", "output[0]."),
    ),
    "chat": (GOOD[0], "unknown_field", "messages"),
}
WHOLE_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty_file"),
    "blank": (b" \n\n", "empty_file"),
    "gzip": (gzip.compress(b"\0" * 10**6), "compressed"),
    "zip": (b"PK\x03\x04" + b"0" * 30, "compressed"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"0" * 30, "compressed"),
    "parquet": (b"PAR1" + b"0" * 30, "not_text"),
    "utf-16": ("".join(line.decode() for line in GOOD).encode("utf-16"), "utf16"),
    "utf-16 without mark": ("".join(x.decode() for x in GOOD).encode("utf-16-le"), "utf16"),
    "array": (b"[" + b",".join(GOOD) + b"]", "json_array"),
    "nine lines": (b"\n".join(GOOD[:9]), "too_few_examples"),
}


def checked(
    folder: Path, data: bytes, *, method: Any = "supervised", held: bytes | None = None, **more
):
    train, validation = folder / more.pop("name", "train.jsonl"), folder / "held.jsonl"
    train.write_bytes(data)
    if held is not None:
        validation.write_bytes(held)
    checker = Checker(
        method,
        max_length=more.get("max_length", 100),
        measure=more.get("measure"),
        marks=more.get("marks", ()),
    )
    return checker.check(train, validation if held is not None else None)


def found(report: DataReport) -> list[tuple[str, int, str]]:
    return [(p.code, p.line, p.field) for p in (*report.errors, *report.warnings)]


def test_good_data_has_no_problems_with_windows_line_ends_and_a_mark(tmp_path: Path):
    report = checked(tmp_path, b"\xef\xbb\xbf" + b"\r\n".join(GOOD) + b"\r\n\r\n")
    assert found(report) == []
    assert report.num_examples == len(GOOD)


def test_a_good_chat_with_calls_has_no_problems(tmp_path: Path):
    good = chat(USER, call(), result(), ANSWER, tools=[TOOL], parallel_tool_calls=True)
    assert found(checked(tmp_path, b"\n".join([*GOOD, good]))) == []


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_told_with_line_and_field(tmp_path: Path, name: str):
    line, code, field = BAD_LINES[name]
    report = checked(tmp_path, b"\n".join([*GOOD, line, *GOOD[:0]]))
    assert (code, 11, field) in found(report)
    assert all(p.message and p.fix for p in (*report.errors, *report.warnings))


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_a_bad_pair_is_told_with_line_and_field(tmp_path: Path, name: str):
    line, code, field = BAD_PAIRS[name]
    good = [pair(input={"messages": [{**USER, "content": str(n)}]}) for n in range(10)]
    assert found(checked(tmp_path, b"\n".join(good), method="dpo")) == []
    assert (code, 11, field) in found(checked(tmp_path, b"\n".join([*good, line]), method="dpo"))


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_file_that_is_wrong_as_a_whole_is_told(tmp_path: Path, name: str):
    data, code = WHOLE_FILES[name]
    report = checked(tmp_path, data)
    assert code in [p.code for p in report.errors]
    assert len(report.errors) == 1, "one cause is told once"


def test_all_problems_are_told_at_once_and_their_list_is_bounded(tmp_path: Path):
    many = MAX_LISTED_PER_CODE + 20
    report = checked(tmp_path, b"\n".join([b"{"] * many + [chat(USER)] + GOOD))
    assert report.counts == {"no_answer": 1, "not_json": many, "unanswered": 1}
    assert report.num_errors == many + 1
    assert len(report.errors) == MAX_LISTED_PER_CODE + 1


def test_what_is_held_back_must_not_be_learned(tmp_path: Path):
    other = chat(USER, {**ANSWER, "content": "unseen"})
    report = checked(tmp_path, b"\n".join(GOOD), held=b"\n".join([other, GOOD[4]]))
    (overlap,) = report.warnings
    assert (overlap.code, overlap.file, overlap.line) == ("overlap", "held.jsonl", 2)
    assert report.num_validation_examples == 2


def test_tokens_are_counted_and_too_long_examples_name_the_limit(tmp_path: Path):
    def measure(record, method) -> Measured:
        size = len(record["messages"][0]["content"])
        return Measured(size, 3, size)

    long = chat({**USER, "content": "x" * 101}, ANSWER)
    report = checked(tmp_path, b"\n".join([*GOOD, long]), measure=measure, max_length=100)
    (error,) = report.errors
    assert (error.code, error.line) == ("too_long", 11)
    assert "101" in error.message
    assert "100" in error.message
    assert report.num_tokens == 8 * 10 + 101
    assert (report.tokens.p50, report.tokens.max, report.tokens.targets) == (8, 101, 33)


def test_control_tokens_are_refused_where_they_would_be_learned(tmp_path: Path):
    mark = "<|im_end|>"
    inside = {"content": f"a{mark}\n<|im_start|>user\nb"}
    learned = call(function={"arguments": json.dumps({"a": mark})})
    lines = [
        chat(USER, {**ANSWER, **inside}),
        chat({**USER, **inside}, {**ANSWER, **inside, "weight": 0}, USER, ANSWER),
        chat({**USER, "content": [{"type": "text", "text": mark}]}, learned, tools=[TOOL]),
        chat({**USER, "content": "<|im_en d|>, "}, ANSWER),
    ]
    marks = ("<|im_start|>", mark, "</s>")
    report = checked(tmp_path, b"\n".join([*GOOD, *lines]), marks=marks)
    assert [(p.line, p.field) for p in report.errors] == [
        (11, "messages[1].content"),
        (13, "messages[1].tool_calls[0].function.arguments"),
    ]
    assert [(p.line, p.field) for p in report.warnings] == [
        *((12, f"messages[{index}].content") for index in (0, 1)),
        (13, "messages[0].content[0].text"),
    ]
    assert set(report.counts) == {"control_token"}
    assert repr(mark) in report.errors[0].message
    rejected = [USER, {**ANSWER, **inside}]
    pairs = [pair(input={"messages": [{**USER, "content": str(n)}]}) for n in range(10)]
    pairs += [pair(input={"messages": [{**USER, **inside}]}, non_preferred_output=rejected[1:])]
    report = checked(tmp_path, b"\n".join(pairs), method="dpo", marks=marks)
    assert [p.field for p in report.errors] == ["non_preferred_output[0].content"]
    assert [p.field for p in report.warnings] == ["input.messages[0].content"]
    texts = json.dumps({"text": f"one{mark}two"}).encode()
    assert found(checked(tmp_path, texts, method="pretrain", marks=marks)) == []


def test_plain_text_is_counted_in_pieces(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(check_module, "_TEXT_PIECE_BYTES", 64)
    sizes: list[int] = []

    def measure(record, method) -> Measured:
        sizes.append(len(record["text"]))
        return Measured(sizes[-1], sizes[-1], sizes[-1])

    text = "naïve café 🥖\n" * 40
    more = {"name": "t.txt", "method": "pretrain", "measure": measure}
    report = checked(tmp_path, text.encode(), **more)
    assert found(report) == []
    assert sum(sizes) == len(text)
    assert max(sizes) <= 64
    assert found(checked(tmp_path, b"abc\xff", **more)) == [("bad_utf8", 0, "")]
    assert found(checked(tmp_path, b"abc\0", **more)) == [("nul", 0, "")]


def test_every_kind_of_problem_is_in_the_documents_and_no_other():
    sources = [*(REPOSITORY / "maas/finetune/data").glob("*.py")]
    pattern = r'Finding\(\s*"([a-z_0-9]+)"'
    codes = {code for path in sources for code in re.findall(pattern, path.read_text())}
    text = (REPOSITORY / "docs" / "finetuning-data.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text.partition("## What the check tells")[2], re.MULTILINE)
    assert {code for row in rows for code in re.findall(r"`(\w+)`", row)} == codes
    assert len(codes) >= 40


@pytest.mark.slow
def test_a_file_of_200_mb_is_checked_in_little_memory(tmp_path: Path):
    file, size = tmp_path / "large.jsonl", 200 * 2**20
    filling = "words of an answer " * 50
    with file.open("wb") as stream:
        number = 0
        while stream.tell() < size:
            number += 1
            stream.write(chat(USER, {**ANSWER, "content": f"{number} {filling}"}) + b"\n")
    program = (
        "import resource, sys; from pathlib import Path; "
        "from maas.finetune.data.check import Checker; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "report = Checker('supervised', max_length=9, measure=None).check(Path(sys.argv[1])); "
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "print(report.num_examples, report.num_errors, after - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True
    )
    examples, errors, grown_kib = (int(word) for word in done.stdout.split())
    assert (examples, errors) == (number, 0)
    assert grown_kib < 100 * 1024


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "role",
                    "content",
                    "tools",
                    "tool_calls",
                    "function",
                    "name",
                    "id",
                    "arguments",
                    "weight",
                    "type",
                    "text",
                    "tool_call_id",
                    "input",
                    "preferred_output",
                    "non_preferred_output",
                ]
            )
            | st.text(max_size=3),
            inner
            | st.sampled_from(["user", "assistant", "tool", "system", "text", "function", "{}"]),
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lines=st.lists(st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()), max_size=5),
    method=st.sampled_from(["supervised", "dpo", "pretrain"]),
)
def test_whatever_a_file_holds_there_is_a_report(tmp_path_factory, lines, method):
    folder = tmp_path_factory.getbasetemp()
    report = checked(folder, b"\n".join(lines), method=method)
    assert DataReport.model_validate_json(report.model_dump_json()) == report


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    messages=st.lists(JSON, max_size=5), tools=JSON, method=st.sampled_from(["supervised", "dpo"])
)
def test_whatever_messages_are_there_is_a_report(tmp_path_factory, messages, tools, method):
    record = {"messages": messages, "tools": tools}
    if method == "dpo":
        record = {"input": record, "preferred_output": messages, "non_preferred_output": tools}
    report = checked(tmp_path_factory.getbasetemp(), json.dumps(record).encode(), method=method)
    assert DataReport.model_validate_json(report.model_dump_json()) == report
