"""What an adapter folder may hold: one good one, and many that somebody could bring."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas.core.errors import AdapterRefused
from maas.finetune.adapter_files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_adapter,
    keep_adapter,
)
from maas.finetune.base_modules import BaseModules, read_base_modules
from maas.finetune.safetensors_header import is_finite, read_header
from tests.fakes.adapters import (
    CONFIG,
    SHAPES,
    framed,
    safetensors_of,
    tensors_of,
    write_adapter,
)

BASE = BaseModules(dict(SHAPES))
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def test_good_adapter_passes(good):
    facts = check_adapter(good, BASE, max_rank=16)
    assert (facts.r, facts.lora_alpha) == (4, 8.0)
    assert facts.target_modules == ("down_proj", "q_proj")
    assert facts.num_tensors == 8
    assert len(facts.id) == 64


def test_id_is_what_it_computes_and_not_how_it_was_written(good, tmp_path):
    expected = check_adapter(good, BASE).id
    order = list(reversed(tensors_of().items()))
    config = {
        **CONFIG,
        "target_modules": ["down_proj", "q_proj"],
        "base_model_name_or_path": "/elsewhere",
        "lora_alpha": 8.0,
        "lora_dropout": 0.5,
        "peft_version": "9",
        "use_dora": False,
        "eva_config": None,
    }
    other = write_adapter(tmp_path / "other", config, safetensors_of(dict(order)))
    assert check_adapter(other, BASE).id == expected


@pytest.mark.parametrize(
    "change", [{"lora_alpha": 9}, {"use_rslora": True}], ids=["alpha", "rslora"]
)
def test_what_computes_something_else_has_another_id(good, tmp_path, change):
    other = write_adapter(tmp_path / "other", {**CONFIG, **change})
    assert check_adapter(other, BASE).id != check_adapter(good, BASE).id


def test_one_other_number_is_another_id(good, tmp_path):
    tensors = tensors_of()
    dtype, shape, raw = tensors[FIRST]
    tensors[FIRST] = (dtype, shape, struct.pack("<f", 0.25) + raw[4:])
    other = write_adapter(tmp_path / "other", weights=safetensors_of(tensors))
    assert check_adapter(other, BASE).id != check_adapter(good, BASE).id


def test_what_is_kept_is_the_same_adapter_without_where_it_came_from(good, tmp_path):
    facts = check_adapter(good, BASE)
    keep_adapter(good, tmp_path / "kept", "tiny", facts)
    kept = json.loads((tmp_path / "kept" / CONFIG_NAME).read_text())
    assert kept["base_model_name_or_path"] == "tiny"
    assert check_adapter(tmp_path / "kept", BASE).id == facts.id


@dataclass
class Hostile:
    """A way to make a good adapter bad, and what the refusal must say."""

    words: str
    config: dict[str, Any] | None = None
    weights: Callable[[], bytes] | None = None
    spoil: Callable[[Path], object] | None = None
    max_rank: int = 16


def changed(name: str, *, dtype: str = "F32", shape: list[int], raw: bytes) -> Callable[[], bytes]:
    return lambda: safetensors_of({**tensors_of(), name: (dtype, shape, raw)})


def header(edit: Callable[[dict[str, Any]], object]) -> Callable[[], bytes]:
    """Edit the header of a good file."""

    def made() -> bytes:
        whole = safetensors_of(tensors_of())
        (length,) = struct.unpack("<Q", whole[:8])
        parsed = json.loads(whole[8 : 8 + length])
        edit(parsed)
        return framed(json.dumps(parsed).encode(), whole[8 + length :])

    return made


def twice() -> bytes:
    whole = safetensors_of(tensors_of())
    (length,) = struct.unpack("<Q", whole[:8])
    text = whole[8 : 8 + length].decode()
    again = json.dumps({FIRST: json.loads(text)[FIRST]})[1:-1]
    return framed((text[:-1] + "," + again + "}").encode(), whole[8 + length :])


def with_name(name: str) -> Callable[[], bytes]:
    def made() -> bytes:
        tensors = tensors_of()
        return safetensors_of({**tensors, name: tensors[FIRST]})

    return made


def without(name: str) -> Callable[[], bytes]:
    return lambda: safetensors_of({k: v for k, v in tensors_of().items() if k != name})


def link(name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        target = folder.parent / f"outside-{name}"
        shutil.move(folder / name, target)
        (folder / name).symlink_to(target)

    return spoil


FLOATS = b"\0" * (4 * 4 * 8)
HOSTILE = {
    "a pickle beside it": Hostile("pickles", spoil=lambda f: (f / "optimizer.pt").touch()),
    "a pickle instead": Hostile(
        "pickles", spoil=lambda f: (f / WEIGHTS_NAME).rename(f / "adapter_model.bin")
    ),
    "a pickle in capitals": Hostile("pickles", spoil=lambda f: (f / "X.PKL").touch()),
    "code": Hostile("not part", spoil=lambda f: (f / "modeling_x.py").touch()),
    "a tokenizer": Hostile("the base's", spoil=lambda f: (f / "tokenizer.json").touch()),
    "a hidden file": Hostile("not part", spoil=lambda f: (f / ".hidden").touch()),
    "a folder": Hostile("no folders", spoil=lambda f: (f / "more").mkdir()),
    "a link to the weights": Hostile("no links", spoil=link(WEIGHTS_NAME)),
    "a link to the config": Hostile("no links", spoil=link(CONFIG_NAME)),
    "a pipe": Hostile("plain files", spoil=lambda f: os.mkfifo(f / "README.md")),
    "no config": Hostile("missing", spoil=lambda f: (f / CONFIG_NAME).unlink()),
    "no weights": Hostile("missing", spoil=lambda f: (f / WEIGHTS_NAME).unlink()),
    "no folder at all": Hostile("no folder", spoil=shutil.rmtree),
    "a config that is too large": Hostile(
        "want at most", spoil=lambda f: (f / CONFIG_NAME).write_text(" " * 300_000)
    ),
    "a config that is no JSON": Hostile(
        "not JSON", spoil=lambda f: (f / CONFIG_NAME).write_text("{")
    ),
    "a config nested too deep": Hostile(
        "not JSON", spoil=lambda f: (f / CONFIG_NAME).write_text("[" * 100_000)
    ),
    "a config that is a list": Hostile(
        "JSON object", spoil=lambda f: (f / CONFIG_NAME).write_text("[]")
    ),
    "a config with a field twice": Hostile(
        "stands twice", spoil=lambda f: (f / CONFIG_NAME).write_text('{"r": 4, "r": 8}')
    ),
    "a config with NaN": Hostile(
        "no number", spoil=lambda f: (f / CONFIG_NAME).write_text('{"lora_alpha": NaN}')
    ),
    "auto_map": Hostile("code", config={"auto_map": {"AutoModel": "x.Y"}}),
    "an empty auto_map": Hostile("code", config={"auto_map": {}}),
    "another kind of adapter": Hostile("only LORA", config={"peft_type": "PREFIX_TUNING"}),
    "no kind": Hostile("only LORA", config={"peft_type": None}),
    "DoRA": Hostile("use_dora=False", config={"use_dora": True}),
    "whole modules": Hostile("modules_to_save", config={"modules_to_save": ["lm_head"]}),
    "ranks by module": Hostile("rank_pattern", config={"rank_pattern": {"q_proj": 64}}),
    "alphas by module": Hostile("alpha_pattern", config={"alpha_pattern": {"q_proj": 64}}),
    "biases": Hostile("bias='none'", config={"bias": "lora_only"}),
    "a start that changes the base": Hostile("own weights", config={"init_lora_weights": "pissa"}),
    "another task": Hostile("CAUSAL_LM", config={"task_type": "SEQ_CLS"}),
    "a field nobody knows": Hostile("not known", config={"use_magic": True}),
    "replicated layers": Hostile("replicated", config={"layer_replication": [[0, 2]]}),
    "a rank above the engine's": Hostile("max_lora_rank=8", max_rank=1),
    "a rank that is no number": Hostile("whole number", config={"r": "4"}),
    "a rank that is true": Hostile("whole number", config={"r": True}),
    "a rank of nothing": Hostile("whole number", config={"r": 0}),
    "a rank without end": Hostile("whole number", config={"r": 10**30}),
    "another rank than the weights": Hostile("as r is 8", config={"r": 8}),
    "an alpha of nothing": Hostile("lora_alpha", config={"lora_alpha": 0}),
    "an alpha without end": Hostile("lora_alpha", config={"lora_alpha": 1e300}),
    "an alpha that is text": Hostile("lora_alpha", config={"lora_alpha": "8"}),
    "a pattern for modules": Hostile("must be a list", config={"target_modules": ".*"}),
    "the embedding": Hostile("only those", config={"target_modules": ["embed_tokens"]}),
    "the head": Hostile("only those", config={"target_modules": ["q_proj", "lm_head"]}),
    "modules that are no text": Hostile("only those", config={"target_modules": [1]}),
    "modules without weights": Hostile(
        "nothing for k_proj", config={"target_modules": ["q_proj", "down_proj", "k_proj"]}
    ),
    "weights of no target": Hostile("none of target", config={"target_modules": ["q_proj"]}),
    "rslora that is text": Hostile("true or false", config={"use_rslora": "yes"}),
    "no weights in the file": Hostile("no tensor", weights=lambda: safetensors_of({})),
    "an empty file": Hostile("no safetensors", weights=bytes),
    "a zip": Hostile("header", weights=lambda: b"PK\x03\x04" + b"\0" * 100),
    "compressed weights": Hostile(
        "header", weights=lambda: zlib.compress(safetensors_of(tensors_of()))
    ),
    "a header longer than the file": Hostile(
        "says that its header", weights=lambda: struct.pack("<Q", 2**40) + b"{}"
    ),
    "a header that is cut": Hostile(
        "not JSON", weights=lambda: framed(json.dumps({"a": 1}).encode()[:-1], b"")
    ),
    "a header that is no text": Hostile("not JSON", weights=lambda: framed(b"\xff\xfe", b"")),
    "a header that is a list": Hostile("JSON object", weights=lambda: framed(b"[]", b"")),
    "metadata that is no text": Hostile(
        "object of texts", weights=header(lambda h: h.update(__metadata__={"a": {"b": 1}}))
    ),
    "a tensor twice": Hostile("stands twice", weights=twice),
    "a tensor with more fields": Hostile(
        "nothing else", weights=header(lambda h: h[FIRST].update(strides=[1]))
    ),
    "a tensor that is no object": Hostile(
        "nothing else", weights=header(lambda h: h.update({FIRST: 1}))
    ),
    "a dtype nobody knows": Hostile(
        "is none of", weights=header(lambda h: h[FIRST].update(dtype="F128"))
    ),
    "a dtype that is a list": Hostile(
        "is none of", weights=header(lambda h: h[FIRST].update(dtype=["F32"]))
    ),
    "integers": Hostile(
        "want float", weights=changed(FIRST, dtype="I32", shape=[4, 8], raw=FLOATS)
    ),
    "a shape that is not its size": Hostile(
        "bytes for", weights=header(lambda h: h[FIRST].update(shape=[4, 9]))
    ),
    "a shape below nothing": Hostile(
        "whole numbers", weights=header(lambda h: h[FIRST].update(shape=[-4, -8]))
    ),
    "a shape without end": Hostile(
        "whole numbers", weights=header(lambda h: h[FIRST].update(shape=[2**62, 2**62]))
    ),
    "a shape of fractions": Hostile(
        "whole numbers", weights=header(lambda h: h[FIRST].update(shape=[4.0, 8]))
    ),
    "offsets the wrong way round": Hostile(
        "a beginning and an end", weights=header(lambda h: h[FIRST]["data_offsets"].reverse())
    ),
    "offsets past the end": Hostile(
        "leaves a gap", weights=header(lambda h: h[FIRST].update(data_offsets=[10**6, 10**6 + 128]))
    ),
    "two tensors in one place": Hostile(
        "overlaps",
        weights=header(
            lambda h: h[FIRST.replace("_A", "_B")].update(data_offsets=h[FIRST]["data_offsets"])
        ),
    ),
    "bytes that are no tensor's": Hostile(
        "end at byte", weights=lambda: safetensors_of(tensors_of()) + b"more"
    ),
    "a cut file": Hostile("end at byte", weights=lambda: safetensors_of(tensors_of())[:-4]),
    "half a pair": Hostile("lacks lora_A or lora_B", weights=without(FIRST)),
    "a name that is no adapter's": Hostile("no LoRA tensor", weights=with_name("a.weight")),
    "a name that climbs": Hostile("no LoRA tensor", weights=with_name("../../etc/passwd")),
    "a module the base lacks": Hostile(
        "lacks|no linear layer",
        weights=with_name(FIRST.replace("layers.0", "layers.7")),
    ),
    "a tensor with three sides": Hostile(
        "shapes", weights=changed(FIRST, shape=[4, 4, 2], raw=FLOATS)
    ),
    "a tensor of another width": Hostile(
        "of the base is 8 x 8", weights=changed(FIRST, shape=[4, 9], raw=b"\0" * (4 * 4 * 9))
    ),
    "a number that is none": Hostile(
        "infinite or none",
        weights=changed(FIRST, shape=[4, 8], raw=struct.pack("<f", float("nan")) + FLOATS[4:]),
    ),
    "a number that is infinite": Hostile(
        "infinite or none",
        weights=changed(FIRST, shape=[4, 8], raw=FLOATS[4:] + struct.pack("<f", float("-inf"))),
    ),
    "half a number that is infinite": Hostile(
        "infinite or none",
        weights=changed(
            FIRST, dtype="F16", shape=[4, 8], raw=struct.pack("<e", float("inf")) + b"\0" * 62
        ),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_adapter_is_refused_with_what_and_how_to_mend_it(good, name):
    hostile = HOSTILE[name]
    if hostile.config is not None:
        write_adapter(good, {**CONFIG, **hostile.config})
    if hostile.weights is not None:
        (good / WEIGHTS_NAME).write_bytes(hostile.weights())
    if hostile.spoil is not None:
        hostile.spoil(good)
    with pytest.raises(AdapterRefused, match=hostile.words) as caught:
        check_adapter(good, BASE, max_rank=hostile.max_rank)
    assert str(good) not in caught.value.message
    assert len(caught.value.message) < 800


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 70


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 1500), byte=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_another_adapter(tmp_path_factory, position, byte):
    whole = bytearray(safetensors_of(tensors_of()))
    position %= len(whole)
    is_same = whole[position] == byte
    whole[position] = byte
    folder = write_adapter(tmp_path_factory.mktemp("a") / "x", weights=bytes(whole))
    original = write_adapter(tmp_path_factory.mktemp("b") / "x")
    (length,) = struct.unpack("<Q", whole[:8])
    try:
        found = check_adapter(folder, BASE).id
    except AdapterRefused:
        return
    # What says nothing may be written in two ways: spaces, and the file's own metadata.
    is_said = position >= 8 + length or position < 8
    if is_said and not is_same:
        assert found != check_adapter(original, BASE).id


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=300))
def test_no_bytes_whatever_do_anything_but_be_refused(tmp_path_factory, raw):
    folder = write_adapter(tmp_path_factory.mktemp("a") / "x", weights=raw)
    with pytest.raises(AdapterRefused):
        check_adapter(folder, BASE)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([*CONFIG, "use_rslora", "init_lora_weights", "x"]), value=_JSON)
def test_no_value_of_a_config_does_anything_but_pass_or_be_refused(tmp_path_factory, name, value):
    folder = write_adapter(tmp_path_factory.mktemp("a") / "x", {**CONFIG, name: value})
    try:
        facts = check_adapter(folder, BASE)
    except AdapterRefused:
        return
    assert facts.config["peft_type"] == "LORA"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_what_is_finite_is_what_floats_say(numbers):
    raw = struct.pack(f"<{len(numbers)}f", *numbers)
    assert is_finite(raw, "F32") == all(abs(n) < float("inf") for n in numbers)
    shorter = b"".join(raw[i + 2 : i + 4] for i in range(0, len(raw), 4))
    widened = struct.unpack(
        f"<{len(numbers)}f",
        b"".join(b"\0\0" + shorter[i : i + 2] for i in range(0, len(shorter), 2)),
    )
    assert is_finite(shorter, "BF16") == all(abs(n) < float("inf") for n in widened)


def test_base_modules_are_the_linear_layers_of_its_blocks(tmp_path):
    weights = {f"{module}.weight": shape for module, shape in SHAPES.items()}
    others = {"model.embed_tokens.weight": (32, 8), "lm_head.weight": (32, 8)}
    others["model.layers.0.input_layernorm.weight"] = (8,)
    tensors = {
        name: ("F32", list(shape), b"\0" * 4 * (shape[0] * (shape[1] if len(shape) > 1 else 1)))
        for name, shape in {**weights, **others}.items()
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_of(tensors))
    base = read_base_modules(tmp_path)
    assert base is not None
    assert base.shapes == SHAPES
    assert base.names == ("down_proj", "k_proj", "q_proj")


def test_packed_weights_are_compared_by_name(tmp_path):
    tensors = {"model.layers.0.self_attn.q_proj.qweight": ("I32", [8, 1], b"\0" * 32)}
    (tmp_path / "model.safetensors").write_bytes(safetensors_of(tensors))
    base = read_base_modules(tmp_path)
    assert base is not None
    base.check("model.layers.0.self_attn.q_proj", num_out=5, num_in=5)
    with pytest.raises(AdapterRefused, match="another model"):
        base.check("model.layers.1.self_attn.q_proj", num_out=5, num_in=5)


def test_base_without_safetensors_is_not_known(tmp_path):
    assert read_base_modules(tmp_path) is None


def test_real_libraries_read_what_passes(good):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(str(good / WEIGHTS_NAME), framework="pt") as file:
        assert set(file.keys()) == set(read_header(good / WEIGHTS_NAME))
