"""s3:// against a real S3 API (moto's server), where the extra is installed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from maas.catalog.weights.fetch import fetch_weights
from maas.catalog.weights.files import SourceAccess
from maas.core.errors import SourceUnreachable
from tests.s3 import s3_server
from tests.unit.catalog.fixtures import make_card, write_weights

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


@pytest.fixture
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.mark.filterwarnings("ignore")  # botocore's own deprecations
def test_prefix_is_fetched_and_resumed(endpoint: str, tmp_path: Path) -> None:
    files = write_weights(tmp_path / "local", size=20_000_000)
    bucket = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
    bucket.mkdir("models")
    bucket.put(str(tmp_path / "local"), "models/tiny", recursive=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors.part").write_bytes(files["model.safetensors"][:9_000_000])
    access = SourceAccess(s3_endpoint=endpoint)
    fetched = fetch_weights(make_card(source=["s3://models/tiny"]), out, print, access=access)
    assert set(fetched.sha256) == set(files)
    assert (out / "model.safetensors").read_bytes() == files["model.safetensors"]
    with pytest.raises(SourceUnreachable, match="nothing there"):
        fetch_weights(make_card(source=["s3://models/no"]), out, print, access=access)
    shutil.rmtree(out)
