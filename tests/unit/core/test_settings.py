"""Settings: four layers, one order, and nothing unknown let through."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from maas.core.errors import ConfigError
from maas.core.settings import Settings, load_settings
from maas.edge.runtime.cli.shared import HOME_VARIABLE


def load(tmp_path: Path, *, toml: str = "", flags=None, **environ: str) -> Settings:
    config = tmp_path / "maas.toml"
    config.write_text(toml)
    return load_settings(flags=flags, environ=environ, config_file=config)


def test_defaults_are_the_contracts(tmp_path):
    settings = load(tmp_path)
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 8080, 9464)
    assert settings.home == Path.home() / ".maas"
    assert settings.model == "smollm2-135m-instruct"
    assert settings.resolved_database_url == f"sqlite:///{Path.home()}/.maas/maas.db"
    assert (settings.models_dir / "smollm2-135m-instruct.yaml").exists()


def test_flags_win_over_environment_over_file_over_defaults(tmp_path):
    toml = "port = 1\nmetrics_port = 1\nlog_level = 'error'\n"
    settings = load(tmp_path, toml=toml, flags={"port": 3}, MAAS_PORT="2", MAAS_METRICS_PORT="2")
    assert (settings.port, settings.metrics_port) == (3, 2)
    assert (settings.log_level, settings.host) == ("error", "127.0.0.1")


def test_flags_that_were_not_given_change_nothing(tmp_path):
    assert load(tmp_path, flags={"port": None}, MAAS_PORT="2").port == 2


def test_sections_merge_key_by_key_across_layers(tmp_path):
    toml = "[serving]\nlease_ttl_s = 9\nhang_timeout_s = 9\n"
    settings = load(
        tmp_path,
        toml=toml,
        flags={"serving": {"drain_timeout_s": 1}},
        MAAS_SERVING__LEASE_TTL_S="7",
    )
    serving = settings.serving
    assert (serving.lease_ttl_s, serving.hang_timeout_s, serving.drain_timeout_s) == (7, 9, 1)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("MAAS_PROT", "prot"),
        ("MAAS_GATEWAY__MAX_BODY", "gateway.max_body"),
        ("MAAS_", ""),
        ("MAAS_NONSENSE__DEEPER__STILL", "nonsense"),
    ],
)
def test_unknown_variable_is_refused_by_its_name(tmp_path, name, key):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **{name: "1"})
    assert f"setting {key!r}" in caught.value.message
    assert "docs/operators.md" in caught.value.message
    assert caught.value.context["param"] == key


@pytest.mark.parametrize("toml", ["prot = 1", "[gateway]\nmax_body = 1", "[nonsense]\na = 1"])
def test_unknown_key_in_the_file_is_refused(tmp_path, toml):
    with pytest.raises(ConfigError, match="Extra inputs"):
        load(tmp_path, toml=toml)


def test_unknown_flag_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="MAAS_NONSENSE"):
        load(tmp_path, flags={"nonsense": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAAS_PORT", "70000"),
        ("MAAS_PORT", "http"),
        ("MAAS_PORT", ""),
        ("MAAS_LOG_LEVEL", "loud"),
        ("MAAS_GATEWAY__MAX_BODY_BYTES", "0"),
        ("MAAS_SERVING__OBJECT_STORE_BYTES", "1"),
        ("MAAS_ALLOW_PICKLE", "perhaps"),
    ],
)
def test_value_out_of_range_is_refused_by_its_variable(tmp_path, name, value):
    with pytest.raises(ConfigError, match=name):
        load(tmp_path, **{name: value})


def test_variables_of_others_are_left_alone(tmp_path):
    assert load(tmp_path, MAASPROC="1", maas_port="9", PORT="9").port == 8080


@pytest.mark.parametrize(
    "environ",
    [
        {"MAAS_GATEWAY": "x", "MAAS_GATEWAY__MAX_JSON_DEPTH": "3"},
        {"MAAS_GATEWAY__MAX_JSON_DEPTH": "3", "MAAS_GATEWAY": "x"},
    ],
)
def test_a_section_set_as_a_value_too_is_refused_in_any_order(tmp_path, environ):
    with pytest.raises(ConfigError, match="MAAS_GATEWAY and MAAS_GATEWAY__"):
        load(tmp_path, **environ)


def test_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"maas\.toml: not valid TOML"):
        load(tmp_path, toml="port = ")
    (tmp_path / "maas.toml").write_bytes(b"port = '\xff'")
    with pytest.raises(ConfigError, match=r"maas\.toml: not valid TOML"):
        load_settings(environ={}, config_file=tmp_path / "maas.toml")


def test_no_file_is_no_error(tmp_path):
    assert load_settings(environ={}, config_file=tmp_path / "none.toml").port == 8080


@pytest.mark.parametrize("value", ["none", "None", ""])
def test_no_model_can_be_asked_for(tmp_path, value):
    assert load(tmp_path, MAAS_MODEL=value).model is None


def test_home_and_cards_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load(tmp_path, MAAS_HOME="state", MAAS_MODELS_DIR="~/cards")
    assert settings.home == tmp_path / "state"
    assert settings.models_dir == Path.home() / "cards"
    assert settings.weights_dir == tmp_path / "state" / "models"
    assert settings.logs_dir == tmp_path / "state" / "logs"
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/state/maas.db"


def test_database_elsewhere_is_used_as_given(tmp_path):
    url = "postgresql+psycopg://u:p@db/maas"
    assert load(tmp_path, MAAS_DATABASE_URL=url).resolved_database_url == url


def test_secrets_are_not_shown(tmp_path):
    settings = load(tmp_path, MAAS_HF_TOKEN="hf_secret")
    assert "hf_secret" not in repr(settings)
    assert settings.hf_token.get_secret_value() == "hf_secret"


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings().port = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "section",
    [
        Settings,
        *[
            field.annotation
            for field in Settings.model_fields.values()
            if hasattr(field.annotation, "model_fields")
        ],
    ],
)
def test_every_setting_says_what_it_does(section):
    for name, field in section.model_fields.items():
        is_section = hasattr(field.annotation, "model_fields")
        assert is_section or field.description, f"{section.__name__}.{name} has no docstring"


def test_what_a_device_reads_may_be_set_in_the_same_shell(tmp_path):
    settings = load(tmp_path, **{HOME_VARIABLE: str(tmp_path)}, MAAS_PORT="18080")
    assert settings.port == 18080
