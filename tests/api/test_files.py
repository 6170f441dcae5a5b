"""Files and uploads: OpenAI's own client, and clients that mean no good."""

import asyncio
import hashlib
import io
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from sqlalchemy import func, select

from maas.store.finetune_tables import FileRow, UploadPartRow, UploadRow
from maas.store.key_terms import KeyTerms
from maas.store.records import Role
from tests.api.conftest import RunningGateway

LINES = b'{"messages": []}\n' * 50
MIB = 1 << 20


@pytest.fixture(scope="module")
def gateway_settings() -> dict:
    return {"max_file_bytes": 4 * MIB, "max_part_bytes": MIB, "body_timeout_s": 1.0}


@pytest.fixture
def client(gateway: RunningGateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def _leaves_nothing(gateway: RunningGateway):
    """Every blob has a row and every row a blob, whatever was asked; nothing is left spooled."""
    yield
    blobs = gateway.home / "blobs"
    with gateway.store.database.read() as session:
        keys = {
            *session.scalars(select(FileRow.blob_key)),
            *session.scalars(select(UploadPartRow.blob_key)),
        }
    deadline = time.monotonic() + 5
    while True:
        found = {str(path.relative_to(blobs)) for path in blobs.rglob("*") if path.is_file()}
        if found == keys or time.monotonic() > deadline:
            assert found == keys
            return
        time.sleep(0.05)


def num_files(gateway: RunningGateway) -> int:
    with gateway.store.database.read() as session:
        return session.scalar(select(func.count()).select_from(FileRow)) or 0


def post_form(gateway: RunningGateway, files=None, data=None, **headers: str) -> httpx.Response:
    files = {"file": ("t.jsonl", LINES)} if files is None else files
    data = {"purpose": "fine-tune"} if data is None else data
    return gateway.client.post("/v1/files", files=files, data=data, headers=headers)


def test_file_is_made_listed_read_and_deleted(client: openai.OpenAI) -> None:
    made = client.files.create(
        file=("train.jsonl", LINES),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.bytes, made.filename, made.purpose) == (len(LINES), "train.jsonl", "fine-tune")
    assert made.expires_at == made.created_at + 3600
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == LINES
    assert made.id in {file.id for file in client.files.list(purpose="fine-tune")}
    assert made.id not in {file.id for file in client.files.list(purpose="batch")}
    assert client.files.wait_for_processing(made.id).status == "processed"
    assert client.files.delete(made.id).deleted
    for gone in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError):
            gone(made.id)
    assert made.id not in {file.id for file in client.files.list()}


def test_list_is_paged_in_either_order(gateway, client) -> None:
    made = [client.files.create(file=(f"{n}", b"x"), purpose="evals").id for n in range(3)]
    first = client.files.list(purpose="evals", limit=2)
    assert [file.id for file in first.data] == [made[2], made[1]]
    assert first.has_more
    assert [file.id for file in client.files.list(purpose="evals", limit=1, order="asc")] == made
    wrong = gateway.client.get("/v1/files", params={"after": "file-none"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "after")


def test_hash_of_the_content_is_kept(gateway, client) -> None:
    made = client.files.create(file=("t", LINES), purpose="fine-tune")
    with gateway.store.database.read() as session:
        row = session.get_one(FileRow, made.id)
        assert row.sha256 == hashlib.sha256(LINES).hexdigest()


def test_large_file_comes_in_parts(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(os.urandom(3 * MIB + 17))
    upload = client.uploads.upload_file_chunked(
        file=path,
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=MIB,
        md5=hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
    )
    assert upload.status == "completed"
    assert upload.file is not None
    assert client.files.content(upload.file.id).content == path.read_bytes()
    assert client.files.retrieve(upload.file.id).filename == "large.jsonl"
    client.files.delete(upload.file.id)


def begin(client: openai.OpenAI, size: int) -> str:
    upload = client.uploads.create(
        bytes=size, filename="f", mime_type="text/plain", purpose="fine-tune"
    )
    assert upload.status == "pending"
    return upload.id


def test_parts_are_joined_in_the_order_that_is_asked_for(client) -> None:
    upload = begin(client, 6)
    parts = [client.uploads.parts.create(upload, data=data).id for data in (b"ccc", b"aa", b"b")]
    done = client.uploads.complete(upload, part_ids=[parts[1], parts[2], parts[0]])
    assert client.files.content(done.file.id).content == b"aabccc"
    for after in (
        lambda: client.uploads.complete(upload, part_ids=parts),
        lambda: client.uploads.cancel(upload),
        lambda: client.uploads.parts.create(upload, data=b"x"),
    ):
        with pytest.raises(openai.ConflictError, match="completed"):
            after()


def test_upload_with_wrong_parts_is_refused_and_may_be_mended(client) -> None:
    upload = begin(client, 4)
    first = client.uploads.parts.create(upload, data=b"ab").id
    with pytest.raises(openai.BadRequestError, match="more than the 4"):
        client.uploads.parts.create(upload, data=b"abc")
    second = client.uploads.parts.create(upload, data=b"cd").id
    for part_ids, why in (
        ([first], "2 bytes"),
        ([first, first], "twice"),
        ([first, "part-x"], "no part"),
    ):
        with pytest.raises(openai.BadRequestError, match=why):
            client.uploads.complete(upload, part_ids=part_ids)
    with pytest.raises(openai.BadRequestError, match="MD5"):
        client.uploads.complete(upload, part_ids=[first, second], md5="0" * 32)
    done = client.uploads.complete(upload, part_ids=[first, second])
    assert client.files.content(done.file.id).content == b"abcd"


def test_cancelled_upload_takes_nothing_more(client) -> None:
    upload = begin(client, 4)
    assert client.uploads.cancel(upload).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="cancelled"):
        client.uploads.parts.create(upload, data=b"ab")
    with pytest.raises(openai.NotFoundError):
        client.uploads.parts.create("upload-none", data=b"ab")


def test_upload_is_over_after_an_hour(gateway, client) -> None:
    upload = begin(client, 2)
    part = client.uploads.parts.create(upload, data=b"ab").id
    with gateway.store.database.write() as session:
        session.get_one(UploadRow, upload).expires_at -= 3601
    with pytest.raises(openai.ConflictError, match="expired"):
        client.uploads.complete(upload, part_ids=[part])


def test_two_that_complete_at_once_make_one_file(gateway, client) -> None:
    upload = begin(client, 2)
    part = client.uploads.parts.create(upload, data=b"ab").id
    before = num_files(gateway)
    path = f"/v1/uploads/{upload}/complete"
    with ThreadPoolExecutor(8) as pool:
        sent = pool.map(
            lambda _: gateway.client.post(path, json={"part_ids": [part]}).status_code, range(8)
        )
        assert sorted(sent) == [200] + [409] * 7
    assert num_files(gateway) == before + 1


def test_completion_with_an_idempotency_key_is_answered_again(gateway, client) -> None:
    upload = begin(client, 2)
    part = client.uploads.parts.create(upload, data=b"ab").id
    answers = [
        gateway.client.post(
            f"/v1/uploads/{upload}/complete",
            json={"part_ids": [part]},
            headers={"Idempotency-Key": upload},
        )
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content


def test_upload_larger_than_allowed_is_refused_before_its_parts(client) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        begin(client, 1 << 40)
    assert refused.value.status_code == 413


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "nonsense"}, "purpose"),
        ({"purpose": "fine-tune-results"}, "purpose"),
        ({"purpose": "fine-tune", "more": "x"}, "more"),
        ({"purpose": ["fine-tune", "fine-tune"]}, "purpose"),
        ({"purpose": "evals", "expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"purpose": "evals", "expires_after[seconds]": "9999"}, "expires_after.anchor"),
        (
            {
                "purpose": "evals",
                "expires_after[anchor]": "created_at",
                "expires_after[seconds]": "²",
            },
            "expires_after.seconds",
        ),
    ],
)
def test_form_that_makes_no_sense_is_a_400_and_leaves_nothing(gateway, data, param) -> None:
    before = num_files(gateway)
    answer = post_form(gateway, data=data)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert num_files(gateway) == before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"file": ("e", b"")}, "empty"),
        ({"other": ("o", b"x")}, "no field 'file'"),
        ([("file", ("a", b"x")), ("file", ("b", b"y"))], "twice"),
    ],
)
def test_file_that_cannot_be_kept_is_a_400(gateway, files, message) -> None:
    answer = post_form(gateway, files=files)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\t.jsonl", "t.jsonl"),
        ("a/..", "file"),
        ("größe ☃.jsonl", "größe ☃.jsonl"),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
    ],
)
def test_name_of_a_file_leads_nowhere(gateway, given, kept) -> None:
    assert post_form(gateway, files={"file": (given, b"x")}).json()["filename"] == kept


def test_compressed_bytes_are_kept_as_they_are(client) -> None:
    bomb = b"\x1f\x8b" + b"\0" * 1000
    made = client.files.create(file=("b.jsonl.gz", bomb), purpose="user_data")
    assert made.bytes == len(bomb)


def test_compressed_body_is_refused(gateway) -> None:
    assert post_form(gateway, **{"Content-Encoding": "gzip"}).status_code == 400


def test_file_over_the_limit_is_a_413_before_it_is_read(gateway) -> None:
    answer = post_form(gateway, files={"file": ("f", b"x" * (6 * MIB))})
    assert answer.status_code == 413
    assert "/v1/uploads" in answer.json()["error"]["message"]


def test_file_whose_length_nobody_says_is_a_413_as_soon_as_it_is_over(gateway) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    sent = 0

    def pieces():
        nonlocal sent
        yield head
        while sent < 200 * MIB:
            sent += MIB
            yield b"x" * MIB

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        answer = gateway.client.post("/v1/files", content=pieces(), headers=headers)
    except httpx.TransportError:
        pass  # the connection was closed while it still sent
    else:
        assert answer.status_code == 413
    assert sent < 100 * MIB


@pytest.mark.parametrize("who", ["nobody", "viewer"])
def test_who_may_not_upload_is_refused_before_the_body_is_read(gateway, who) -> None:
    if who == "viewer":
        user = gateway.store.tenancy.users.create(
            gateway.store.tenancy.organizations.find("default").id,
            email="viewer@example.org",
            name="V",
            role=Role.VIEWER,
        )
        _, key = gateway.store.keys.create(
            project_id=gateway.project_id, name="v", terms=KeyTerms(user_id=user.id)
        )
        gateway.wait_seen()
    else:
        key = "sk-nonsense"
    with connection(gateway) as raw:
        raw.sendall(head_of(gateway, length=3 * MIB, key=key))
        # Nothing of the body is sent.
        answer = raw.recv(65536)
    assert answer.split()[1] == {"nobody": b"401", "viewer": b"403"}[who]
    if who == "viewer":
        file = post_form(gateway).json()["id"]
        headers = {"Authorization": f"Bearer {key}"}
        assert gateway.client.get(f"/v1/files/{file}", headers=headers).status_code == 200
        for method, path in (("DELETE", f"/v1/files/{file}"), ("GET", f"/v1/files/{file}/content")):
            assert gateway.client.request(method, path, headers=headers).status_code == 403


def connection(gateway: RunningGateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(gateway.url).port), timeout=10)


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
)
END = b"\r\n--b--\r\n"


def head_of(gateway: RunningGateway, *, length: int, key: str | None = None) -> bytes:
    return (
        "POST /v1/files HTTP/1.1\r\nHost: h\r\n"
        f"Authorization: Bearer {key or gateway.key}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_client_that_leaves_half_way_leaves_nothing(gateway) -> None:
    before = num_files(gateway)
    with connection(gateway) as raw:
        raw.sendall(head_of(gateway, length=3 * MIB) + FORM + b"x" * (2 * MIB))
        time.sleep(0.3)
        assert list((gateway.home / "blobs" / ".incoming").glob("spool-*"))
    time.sleep(0.1)
    assert num_files(gateway) == before


def test_client_that_sends_nothing_more_is_a_408(gateway) -> None:
    with connection(gateway) as raw:
        raw.sendall(head_of(gateway, length=3 * MIB) + FORM + b"x")
        began = time.monotonic()
        assert raw.recv(65536).split()[1] == b"408"
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "body",
    [FORM + b"data", b"no boundary at all", FORM + b"data\r\n--b", b"--b\r\n" + b"h" * 20_000],
)
def test_form_that_is_cut_or_none_is_a_400(gateway, body) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = gateway.client.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 400, answer.text


def test_name_with_control_characters_is_a_400(gateway) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    body = FORM.replace(b'filename="f"', b'filename="a\x07b"') + b"x" + END
    answer = gateway.client.post("/v1/files", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "filename"


def test_form_longer_than_its_length_says_is_cut_there(gateway) -> None:
    body = FORM + b"data" + END
    with connection(gateway) as raw:
        raw.sendall(head_of(gateway, length=len(body) - 4) + body)
        assert raw.recv(65536).split()[1] == b"400"


def test_body_of_json_is_no_file(gateway) -> None:
    answer = gateway.client.post("/v1/files", json={"file": "x", "purpose": "fine-tune"})
    assert answer.status_code == 400
    assert "multipart/form-data" in answer.json()["error"]["message"]


def test_file_whose_bytes_are_lost_is_an_error_and_no_empty_answer(gateway, client) -> None:
    made = client.files.create(file=("t", LINES), purpose="fine-tune")
    lost = gateway.home / "blobs" / "files" / made.id
    lost.unlink()
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)
    lost.write_bytes(LINES)


def test_repeated_upload_with_an_idempotency_key_makes_one_file(gateway) -> None:
    before = num_files(gateway)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: post_form(gateway, **{"Idempotency-Key": "same-bytes"}), range(8))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert num_files(gateway) == before + 1
    other = post_form(
        gateway, files={"file": ("t.jsonl", LINES[:-1])}, **{"Idempotency-Key": "same-bytes"}
    )
    assert other.status_code == 409


def test_many_uploads_at_once_are_all_kept_and_nobody_waits_for_them(gateway) -> None:
    contents = [os.urandom(2 * MIB) for _ in range(12)]
    slowest, is_over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal slowest
        while not is_over.is_set():
            began = time.monotonic()
            assert httpx.get(f"{gateway.url}/healthz").status_code == 200
            slowest = max(slowest, time.monotonic() - began)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda c: post_form(gateway, files={"file": ("f", c)}), contents))
    is_over.set()
    watcher.join()
    for answer, content in zip(answers, contents, strict=True):
        got = gateway.client.get(f"/v1/files/{answer.json()['id']}/content")
        assert got.content == content
    assert slowest < 2


def test_disk_that_fails_is_a_500_that_says_nothing_of_it(gateway) -> None:
    spool = gateway.home / "blobs" / ".incoming"
    aside = spool.with_name(".aside")
    spool.rename(aside)
    spool.write_bytes(b"")  # a file where a folder should be
    try:
        answer = post_form(gateway)
    finally:
        spool.unlink()
        aside.rename(spool)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "host_error")
    assert str(gateway.home) not in answer.text
    assert post_form(gateway).status_code == 200


def test_async_client_uploads_too(gateway) -> None:
    async def go() -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0
        ) as client:
            made = await client.files.create(file=io.BytesIO(LINES), purpose="fine-tune")
            return made.id

    assert asyncio.run(go()).startswith("file-")
