"""Checks training data line by line, in bounded memory, and says all that is wrong at once."""

import codecs
import hashlib
import json
from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from maas.core.errors import DataRefused
from maas.finetune.data import records
from maas.finetune.data.marks import Marks
from maas.finetune.data.problems import DataReport, Problem, Problems, Tokens
from maas.finetune.data.records import Finding
from maas.finetune.recipe import Method

MIN_EXAMPLES = 10
MAX_LINE_BYTES = 8 * 2**20
# Memory that finding duplicates may take: about 100 bytes of each.
MAX_COMPARED = 2_000_000
_TEXT_PIECE_BYTES = 2**20
_LONGEST_WORDS = 300
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"PAR1": "Parquet",
    b"%PDF": "PDF",
}
# Fewer bytes say too little about how text is written.
_LEAST_UTF16 = 16
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"


class Measured(NamedTuple):
    """Tokens of a record: all, those learned, and of its longest sequence."""

    total: int
    targets: int
    longest: int


class Measure(Protocol):
    """Counts a record's tokens."""

    def __call__(self, record: Mapping[str, Any], method: Method) -> Measured:
        """Return its tokens.

        Raises:
            DataRefused: It cannot be rendered.
        """
        ...


@dataclass
class _Side:
    """What was seen of one of the two files."""

    file: str
    num_examples: int = 0
    lengths: "array[int]" = field(default_factory=lambda: array("Q"))
    num_targets: int = 0
    seen: dict[int, int] = field(default_factory=dict[int, int])


class Checker:
    """Checks a pair of files.

    Args:
        method: What the data should teach.
        max_length: Longest example in tokens.
        measure: Counts tokens; none where there is no tokenizer.
        marks: Control tokens of that tokenizer.
    """

    def __init__(
        self,
        method: Method,
        *,
        max_length: int,
        measure: Measure | None,
        marks: Collection[str] = (),
    ) -> None:
        self._method: Method = method
        self._max_length = max_length
        self._measure = measure
        self._marks = Marks(marks)
        self._problems = Problems()

    def check(self, train: Path, validation: Path | None = None) -> DataReport:
        """Return the report of both files."""
        learned = self._check_file(train)
        # A text is one example, however long.
        least = 1 if self._method == "pretrain" else MIN_EXAMPLES
        if learned.num_examples < least and not self._problems.count("error"):
            self._tell(
                learned,
                0,
                Finding(
                    "too_few_examples",
                    "",
                    f"{learned.num_examples} examples; at least {least} are needed",
                    "add examples",
                ),
            )
        held = self._check_file(validation) if validation else _Side("")
        self._compare(learned, held)
        return self._report(learned, held)

    def tell_no_tokenizer(self, file: Path, why: str) -> None:
        """Note that tokens cannot be counted, which a job cannot do without."""
        fix = "run: maas model pull"
        self._tell(_Side(file.name), 0, Finding("no_tokenizer", "", why, fix))

    def _check_file(self, path: Path) -> _Side:
        side = _Side(path.name)
        finding = _refuse_whole(path)
        if finding is not None:
            self._tell(side, 0, finding)
            return side
        if path.suffix == ".txt":
            self._check_text(path, side)
            return side
        for number, raw in _lines(path):
            self._check_line(side, number, raw)
        return side

    def _check_text(self, path: Path, side: _Side) -> None:
        if self._method != "pretrain":
            finding = Finding(
                "plain_text", "", "plain text is for recipe pretrain only", "send JSON lines"
            )
            self._tell(side, 0, finding)
            return
        side.num_examples = 1
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        place, has_text = 0, False
        with path.open("rb") as stream:
            while raw := stream.readline(_TEXT_PIECE_BYTES):
                # Pieces end with a line where they can: tokens are counted as they will be made.
                raw += b"".join(_until(stream, _TEXT_PIECE_BYTES - len(raw)))
                try:
                    text = decoder.decode(raw)
                except UnicodeDecodeError as error:
                    text = f"byte {place + error.start} or so is not UTF-8"
                    self._tell(side, 0, Finding("bad_utf8", "", text, "save it as UTF-8"))
                    return
                place += len(raw)
                if "\0" in text:
                    self._tell(side, 0, Finding("nul", "", "it holds NUL bytes", "remove them"))
                    return
                has_text = has_text or not text.isspace()
                self._count(side, 0, {"text": text})
        if not has_text:
            self._tell(side, 0, Finding("empty_file", "", "there is no text in it", "add it"))

    def _check_line(self, side: _Side, number: int, raw: bytes) -> None:
        if not raw.strip():
            return
        side.num_examples += 1
        parsed = records.parse(raw, max_bytes=MAX_LINE_BYTES, is_first=number == 1)
        if isinstance(parsed, Finding):
            self._tell(side, number, parsed)
            return
        is_good = True
        for finding in records.findings(parsed, self._method):
            self._tell(side, number, finding)
            is_good = is_good and finding.is_warning
        for finding in self._marks.findings(parsed, self._method) if is_good else ():
            self._tell(side, number, finding)
            is_good = is_good and finding.is_warning
        if len(side.seen) >= MAX_COMPARED:
            unseen = f"duplicates are looked for among the first {MAX_COMPARED} examples only"
            self._tell(side, number, Finding("not_compared", "", unseen, "none needed", True))
            first = number
        else:
            first = side.seen.setdefault(_digest(parsed), number)
        if first != number:
            repeated = Finding(
                "duplicate", "", f"is the same as line {first}", "remove one", is_warning=True
            )
            self._tell(side, number, repeated)
        if is_good:
            self._count(side, number, parsed)

    def _count(self, side: _Side, number: int, record: Mapping[str, Any]) -> None:
        if self._measure is None:
            return
        try:
            measured = self._measure(record, self._method)
        except DataRefused as error:
            self._tell(side, number, Finding("not_rendered", "", error.message, "change the turns"))
            return
        if measured.longest > self._max_length and self._method != "pretrain":
            finding = Finding(
                "too_long",
                "",
                f"{measured.longest} tokens; the model takes {self._max_length}",
                "shorten or split it",
            )
            self._tell(side, number, finding)
        if measured.targets == 0:
            nothing = Finding(
                "nothing_to_learn", "", "no token of it is learned", "give an assistant turn"
            )
            self._tell(side, number, nothing)
        side.lengths.append(measured.total)
        side.num_targets += measured.targets

    def _compare(self, learned: _Side, held: _Side) -> None:
        for digest, number in held.seen.items():
            if digest in learned.seen:
                finding = Finding(
                    "overlap",
                    "",
                    f"is also line {learned.seen[digest]} of the training file",
                    "remove it from one of them: what was learned says nothing in validation",
                    is_warning=True,
                )
                self._tell(held, number, finding)

    def _tell(self, side: _Side, line: int, finding: Finding) -> None:
        self._problems.add(
            Problem(
                severity="warning" if finding.is_warning else "error",
                code=finding.code,
                file=side.file,
                line=line,
                field=_legible(finding.field),
                message=_legible(finding.message),
                fix=finding.fix,
            )
        )

    def _report(self, learned: _Side, held: _Side) -> DataReport:
        lengths = sorted(learned.lengths)
        return DataReport(
            errors=self._problems.listed("error"),
            warnings=self._problems.listed("warning"),
            num_errors=self._problems.count("error"),
            num_warnings=self._problems.count("warning"),
            counts=self._problems.counts(),
            num_examples=learned.num_examples,
            num_validation_examples=held.num_examples,
            num_tokens=sum(lengths),
            num_validation_tokens=sum(held.lengths),
            tokens=Tokens(
                total=sum(lengths),
                targets=learned.num_targets,
                p50=_at(lengths, 0.5),
                p95=_at(lengths, 0.95),
                max=lengths[-1] if lengths else 0,
            ),
            are_tokens_counted=self._measure is not None,
        )


def _legible(text: str) -> str:
    """Return a text cut short, without what cannot be printed: it may quote the data."""
    short = text if len(text) <= _LONGEST_WORDS else f"{text[:_LONGEST_WORDS]}..."
    return short.encode(errors="backslashreplace").decode()


def _until(stream: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    """Yield whole lines until there are that many bytes."""
    while num_bytes > 0 and (raw := stream.readline(num_bytes)):
        num_bytes -= len(raw)
        yield raw


def _at(ordered: list[int], share: float) -> int:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0


def _refuse_whole(path: Path) -> Finding | None:
    """Return what makes a file as a whole unusable."""
    with path.open("rb") as stream:
        head = stream.read(2**16)
    if not head.strip() and len(head) < 2**16:
        return Finding("empty_file", "", "the file is empty", "send one JSON object a line")
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return Finding(
                "compressed" if kind not in {"Parquet", "PDF"} else "not_text",
                "",
                f"the file is {kind}, not text; nothing is unpacked here",
                "unpack it and send JSON lines",
            )
    zeros = (head[:64:2].count(0), head[1:64:2].count(0))
    # Without a mark, every other byte of plain text is 0.
    is_unmarked = (
        len(head) >= _LEAST_UTF16 and min(zeros) == 0 and max(zeros) >= len(head[:64]) // 2 - 1
    )
    if head.startswith(_UTF16) or is_unmarked:
        return Finding("utf16", "", "the file is UTF-16", "save it as UTF-8")
    if head.lstrip(_BOM).lstrip().startswith(b"["):
        return Finding(
            "json_array", "", "the file is one JSON array", "put one object on each line"
        )
    return None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield lines; of one that is too long only its start, so that memory stays bounded."""
    with path.open("rb") as stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
            yield number, raw


def _digest(record: Mapping[str, Any]) -> int:
    canonical = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.blake2b(canonical.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest)
