"""Bundles: the same folder makes the same file, and nothing but that file is taken."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maas.core.errors import BundleRefused, ConfigError
from maas.edge.runtime.bundle.archive import Head, hash_file, pack, read_head, unpack, verify
from maas.edge.runtime.bundle.manifest import Manifest, Part, decode, encode, with_id
from maas.edge.runtime.bundle.signing import load_or_make_key, public_key_of, sign


def write_graph(folder: Path, *, location: str = "model.onnx.data") -> None:
    """Write a graph of one product, and the least that is said of one."""
    config = {"model": {"decoder": {"filename": "model.onnx"}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    weight = numpy_helper.from_array(np.ones((4, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [weight],
    )
    onnx.save(
        helper.make_model(graph),
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    if location != "model.onnx.data":
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        (folder / "model.onnx").write_bytes(model.SerializeToString())


def describe(folder: Path, **changes: object) -> Manifest:
    roles = {"model.onnx": "model", "model.onnx.data": "weights", "tokenizer.json": "tokenizer"}
    roles["genai_config.json"] = "config"
    parts = tuple(
        Part(name, (folder / name).stat().st_size, hash_file(folder / name), role)
        for name, role in roles.items()
    )
    manifest = Manifest(
        schema_version=1,
        bundle_id="",
        name="small",
        model_id="m",
        base_model_id="m",
        created_at=0.0,
        precision="int4",
        target="cpu",
        task="generate",
        licence={"name": "Apache-2.0"},
        lineage={},
        parts=parts,
        ram_required_bytes=1,
        max_model_len=16,
        cost_card={},
        receipt={},
    )
    return msgspec.structs.replace(manifest, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    write_graph(source)
    (source / "tokenizer.json").write_text("{}")
    return source


@pytest.fixture
def bundle(folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "small.maas"
    pack(folder, describe(folder), load_or_make_key(tmp_path / "key"), out)
    return out


def trusted(tmp_path: Path) -> set[str]:
    return {public_key_of(load_or_make_key(tmp_path / "key"))}


def test_the_same_folder_makes_the_same_bytes(folder: Path, bundle: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.maas"
    os.utime(folder / "tokenizer.json", (5, 5))
    pack(folder, describe(folder), load_or_make_key(tmp_path / "key"), again)
    assert again.read_bytes() == bundle.read_bytes()


def test_unpacked_parts_are_what_was_packed(folder: Path, bundle: Path, tmp_path: Path) -> None:
    head = unpack(bundle, tmp_path / "out", trusted(tmp_path))
    for part in head.manifest.parts:
        assert (tmp_path / "out" / part.path).read_bytes() == (folder / part.path).read_bytes()


def test_any_tar_reads_it(bundle: Path) -> None:
    with tarfile.open(bundle) as tar:
        assert tar.getnames() == [
            *("bundle.json", "bundle.sig", "model.onnx", "model.onnx.data", "tokenizer.json"),
            "genai_config.json",
        ]


def test_offsets_say_where_parts_begin(folder: Path, bundle: Path) -> None:
    with bundle.open("rb") as stream:
        head: Head = read_head(stream, None)
        for part in head.manifest.parts:
            stream.seek(head.offsets()[part.path])
            assert stream.read(part.size_bytes) == (folder / part.path).read_bytes()


def test_every_flipped_byte_is_noticed(bundle: Path, tmp_path: Path) -> None:
    whole = bundle.read_bytes()
    for place in range(0, len(whole), 97):
        bad = bytearray(whole)
        bad[place] ^= 1
        (tmp_path / "bad.maas").write_bytes(bad)
        with pytest.raises(BundleRefused):
            verify(tmp_path / "bad.maas", trusted(tmp_path))


def test_every_cut_is_noticed(bundle: Path, tmp_path: Path) -> None:
    whole = bundle.read_bytes()
    for size in [*range(0, len(whole), 211), len(whole) - 1]:
        (tmp_path / "cut.maas").write_bytes(whole[:size])
        with pytest.raises(BundleRefused):
            verify(tmp_path / "cut.maas", None)


def test_a_bundle_signed_by_somebody_else_is_refused(
    folder: Path, bundle: Path, tmp_path: Path
) -> None:
    pack(folder, describe(folder), load_or_make_key(tmp_path / "other"), bundle)
    with pytest.raises(BundleRefused, match="a key nobody here trusts"):
        verify(bundle, trusted(tmp_path))
    assert verify(bundle, None).manifest.name == "small"


def test_a_signature_of_another_manifest_is_refused(
    folder: Path, bundle: Path, tmp_path: Path
) -> None:
    key = load_or_make_key(tmp_path / "key")
    other = encode(with_id(describe(folder, name="other")))
    whole = bundle.read_bytes()
    with bundle.open("rb") as stream:
        head = read_head(stream, None)
    forged = sign(other, key)
    assert len(forged) == len(head.signature)
    bundle.write_bytes(whole.replace(head.signature, forged))
    with pytest.raises(BundleRefused, match="it was changed"):
        verify(bundle, trusted(tmp_path))


def test_a_newer_schema_is_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    data = encode(with_id(describe(folder))).replace(b'"schema_version":1', b'"schema_version":2')
    with pytest.raises(BundleRefused, match="update maas-edge"):
        decode(data)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../x",
            "/etc/x",
            "a/../../x",
            "a//b",
            ".hidden",
            "a\\b",
            "C:x",
            "a b",
            "bundle.json",
            "",
        ),
        *("a/b/c/d/e/f/g/h/i", "x" * 300, "a\nb", "nul.", "BUNDLE.SIG"),
    ],
)
def test_paths_that_leave_or_mean_something_are_refused(folder: Path, path: str) -> None:
    good = describe(folder)
    bad = msgspec.structs.replace(good.parts[0], path=path)
    with pytest.raises(BundleRefused, match="is no path of a part"):
        decode(encode(with_id(msgspec.structs.replace(good, parts=(bad,)))))


def test_names_that_differ_in_case_only_are_refused(folder: Path) -> None:
    good = describe(folder)
    twins = (good.parts[0], msgspec.structs.replace(good.parts[0], path="MODEL.onnx"))
    with pytest.raises(BundleRefused, match="two parts"):
        decode(encode(with_id(msgspec.structs.replace(good, parts=twins))))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_refused(bundle: Path, tmp_path: Path, kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(bundle) as tar, tarfile.open(fileobj=out, mode="w") as evil:
        for member in tar.getmembers():
            data = tar.extractfile(member)
            if member.name == "model.onnx":
                member.type, member.linkname, member.size = kind, "/etc/passwd", 0
                evil.addfile(member)
            else:
                evil.addfile(member, data)
    bundle.write_bytes(out.getvalue())
    with pytest.raises(BundleRefused):
        unpack(bundle, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_a_member_more_is_refused(bundle: Path) -> None:
    whole = bundle.read_bytes()[:-1024]
    extra = io.BytesIO()
    with tarfile.open(fileobj=extra, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("more")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    bundle.write_bytes(whole + extra.getvalue())
    with pytest.raises(BundleRefused, match="behind its last part"):
        verify(bundle, None)


@pytest.mark.parametrize("location", ["/etc/passwd", "../other", "elsewhere.data"])
def test_weights_outside_the_bundle_are_refused(
    folder: Path, tmp_path: Path, location: str
) -> None:
    write_graph(folder, location=location)
    out = tmp_path / "x.maas"
    pack(folder, describe(folder), load_or_make_key(tmp_path / "key"), out)
    with pytest.raises(BundleRefused, match="outside the bundle"):
        unpack(out, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BundleRefused, match="outside the bundle"):
        verify(out, None)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"x" * 5000, bytes(5000), b"PK\3\4" + bytes(2000)):
        (tmp_path / "no.maas").write_bytes(data)
        with pytest.raises(BundleRefused):
            verify(tmp_path / "no.maas", None)


def test_packing_a_part_that_changed_meanwhile_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    manifest = describe(folder)
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(BundleRefused):
        pack(folder, manifest, load_or_make_key(tmp_path / "key"), tmp_path / "x.maas")
    assert [p.name for p in tmp_path.iterdir() if "maas" in p.name] == []


def test_the_signing_key_is_its_owners_alone(tmp_path: Path) -> None:
    first = load_or_make_key(tmp_path / "k" / "key")
    assert (tmp_path / "k" / "key").stat().st_mode & 0o777 == 0o600
    assert public_key_of(load_or_make_key(tmp_path / "k" / "key")) == public_key_of(first)
    (tmp_path / "k" / "key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="not a signing key"):
        load_or_make_key(tmp_path / "k" / "key")


def test_a_folder_that_is_there_is_never_mixed_with_a_bundle(bundle: Path, tmp_path: Path) -> None:
    unpack(bundle, tmp_path / "out", None)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("out", "out/mine", "link"):
        with pytest.raises(ConfigError, match="something already"):
            unpack(bundle, tmp_path / place, None)
    assert (tmp_path / "out" / "mine").read_text() == "x"
    with pytest.raises(ConfigError, match="cannot be made"):
        unpack(bundle, tmp_path / "out" / "mine" / "below", None)


def repacked(folder: Path, tmp_path: Path, **changes: object) -> Path:
    out = tmp_path / "changed.maas"
    pack(folder, describe(folder, **changes), load_or_make_key(tmp_path / "key"), out)
    return out


def decoder(**fields: object) -> dict[str, object]:
    return {"model": {"decoder": {"filename": "model.onnx", **fields}}}


@pytest.mark.parametrize(
    "config",
    [
        *(decoder(filename=name) for name in ("/etc/x.onnx", "../x.onnx", "other.onnx", 3)),
        decoder(filename="tokenizer.json"),
        decoder(pipeline=[{"a": {"filename": "/etc/x.onnx"}}]),
        {**decoder(), "speech": {"config_filename": "../x.json"}},
        decoder(session_options={"custom_ops_library": "ops.so"}),
        decoder(session_options={"config_entries": [["x", "/etc/x"]]}),
        decoder(session_options={"optimized_model_filepath": "a/../../x"}),
        decoder(session_options={"provider_options": [{"qnn": {"backend": "C:x.dll"}}]}),
    ],
)
def test_a_configuration_that_leaves_the_bundle_is_refused(
    folder: Path, tmp_path: Path, config: dict[str, object]
) -> None:
    (folder / "genai_config.json").write_text(json.dumps(config))
    out = repacked(folder, tmp_path)
    for read in (lambda: verify(out, None), lambda: unpack(out, tmp_path / "out", None)):
        with pytest.raises(BundleRefused, match=r"genai_config\.json: "):
            read()


@pytest.mark.parametrize(
    "data",
    [
        *(b"{", b"\xff", b"[" * 100_000),
        b'{"model":{"decoder":{"filename":"/x.onnx","filename":"model.onnx"}}}',
    ],
)
def test_a_configuration_that_two_readers_read_differently_is_refused(
    folder: Path, tmp_path: Path, data: bytes
) -> None:
    (folder / "genai_config.json").write_bytes(data)
    with pytest.raises(BundleRefused, match=r"genai_config\.json: cannot be read"):
        verify(repacked(folder, tmp_path), None)


def test_options_that_stay_in_the_bundle_are_taken(folder: Path, tmp_path: Path) -> None:
    options = {"log_id": "onnxruntime-genai", "provider_options": [{"cuda": {"x": "1"}}]}
    config = decoder(session_options=options, inputs={"past_key_names": "/layers.%d/key"})
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert verify(repacked(folder, tmp_path), None).manifest.name == "small"


@pytest.mark.parametrize("gone", ["model.onnx", "tokenizer.json", "genai_config.json"])
def test_a_bundle_without_what_it_is_run_by_is_refused(folder: Path, gone: str) -> None:
    good = describe(folder)
    parts = tuple(part for part in good.parts if part.path != gone)
    with pytest.raises(BundleRefused, match="a bundle to generate has no"):
        decode(encode(with_id(msgspec.structs.replace(good, parts=parts))))


def test_a_bundle_of_embeddings_needs_their_configuration_alone(folder: Path) -> None:
    good = describe(folder)
    with pytest.raises(BundleRefused, match=r"embed_config\.json"):
        decode(encode(with_id(msgspec.structs.replace(good, task="embed"))))
    parts = tuple(
        msgspec.structs.replace(part, path=part.path.replace("genai_", "embed_"))
        for part in good.parts
    )
    made = with_id(msgspec.structs.replace(good, task="embed", parts=parts))
    assert decode(encode(made)) == made


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "\x1b]0;x\x07"},
        {"name": "a\u202eb"},
        {"name": " "},
        {"model_id": "a\r\nX: 1"},
        {"precision": "\x9b1m"},
        {"tool_call_parser": "\x00"},
        {"marks": ("\u2028",)},
        {"ram_required_bytes": 0},
        {"ram_required_bytes": 1 << 60},
        {"max_model_len": -5},
        {"max_model_len": 1 << 40},
    ],
)
def test_names_that_steer_a_terminal_and_sizes_of_no_model_are_refused(
    folder: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(BundleRefused, match=r"bundle\.json: "):
        decode(encode(with_id(describe(folder, **changes))))


@pytest.mark.parametrize(
    ("paths", "size_bytes", "reason"),
    [
        (("x", "X/y"), 5, "is a part itself"),
        (("x/y/z", "x"), 5, "is a part itself"),
        (("x", "y"), 6, "not its size"),
        (("\u00e9" * 150, "y"), 5, "no path of a part"),
        (("\u202ex", "y"), 5, "no path of a part"),
    ],
)
def test_parts_that_no_disk_holds_are_refused(
    folder: Path, paths: tuple[str, str], size_bytes: int, reason: str
) -> None:
    good = describe(folder)
    more = (Part(paths[0], 5, "a" * 64, "config"), Part(paths[1], size_bytes, "a" * 64, "config"))
    with pytest.raises(BundleRefused, match=reason):
        decode(encode(with_id(msgspec.structs.replace(good, parts=(*good.parts, *more)))))
