"""The settings file through which the platform's processes share one resolution."""

from maas.bootstrap.store import read_settings, save_settings
from maas.core.settings import load_settings


def test_other_processes_read_the_same_settings_secrets_included(tmp_path):
    environ = {"MAAS_HOME": str(tmp_path), "MAAS_HF_TOKEN": "hf_secret", "MAAS_PORT": "9"}
    settings = load_settings(environ=environ, config_file=tmp_path / "none.toml")
    path = save_settings(settings)
    assert read_settings(path) == settings
    assert read_settings(path).hf_token.get_secret_value() == "hf_secret"


def test_only_this_user_can_read_them(tmp_path):
    path = save_settings(load_settings(environ={"MAAS_HOME": str(tmp_path)}))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
