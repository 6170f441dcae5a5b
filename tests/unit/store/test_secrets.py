import stat

import pytest

from maas.core.errors import ConfigError
from maas.store.secrets import KEY_FILE, SecretBox


def test_sealed_secret_opens_again_and_is_not_readable(tmp_path):
    sealed = SecretBox(tmp_path).seal("sk-very-secret")
    assert "secret" not in sealed
    assert SecretBox(tmp_path).open(sealed) == "sk-very-secret"


def test_key_file_is_for_its_owner_alone_and_is_made_once(tmp_path):
    box = SecretBox(tmp_path)
    box.seal("a")
    key = (tmp_path / KEY_FILE).read_bytes()
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    box.seal("b")
    assert (tmp_path / KEY_FILE).read_bytes() == key
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_missing_key_file_is_not_replaced_when_opening(tmp_path):
    sealed = SecretBox(tmp_path / "one").seal("a")
    with pytest.raises(ConfigError, match="not there"):
        SecretBox(tmp_path / "two").open(sealed)


def test_other_key_is_refused(tmp_path):
    sealed = SecretBox(tmp_path / "one").seal("a")
    other = SecretBox(tmp_path / "two")
    other.seal("b")
    with pytest.raises(ConfigError, match="another key"):
        other.open(sealed)


def test_broken_key_file_is_named(tmp_path):
    (tmp_path / KEY_FILE).write_text("not a key")
    with pytest.raises(ConfigError, match=KEY_FILE):
        SecretBox(tmp_path).seal("a")
