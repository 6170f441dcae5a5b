from dataclasses import replace
from pathlib import Path

import pytest

from maas.core.errors import CapabilityMissing, ConfigError
from maas.engines.contract import EngineSpec
from maas.engines.registry import ENGINES, get_engine

SPEC = EngineSpec(served_model_name="m", model_dir=Path("weights"), port=1)


def test_engines_are_found_by_their_own_name():
    assert set(ENGINES) == {"vllm", "onnx", "transformers", "external"}
    assert all(get_engine(name).name == name for name in ENGINES)


def test_unknown_engine_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="vllm, onnx, transformers, external"):
        get_engine("llama")


@pytest.mark.parametrize("name", ["transformers", "external"])
async def test_adapter_calls_are_refused_where_the_capability_is_not_claimed(name):
    engine = get_engine(name)
    assert not engine.capabilities.runtime_adapters
    with pytest.raises(CapabilityMissing):
        await engine.load_adapter(None, "", adapter_name="a", adapter_dir=Path("a"))
    with pytest.raises(CapabilityMissing):
        await engine.unload_adapter(None, "", adapter_name="a")


def test_external_engine_is_never_started():
    with pytest.raises(ConfigError, match="run by somebody else"):
        get_engine("external").command(SPEC)


@pytest.mark.parametrize(
    "change",
    [{"task": "embed"}, {"max_loras": 1}, {"tensor_parallel_size": 2}],
)
def test_transformers_refuses_what_it_cannot_do(change):
    engine = get_engine("transformers")
    assert "serve" in engine.command(SPEC)
    with pytest.raises(ConfigError, match="engine transformers: cannot do"):
        engine.command(replace(SPEC, **change))


def test_transformers_knows_a_model_by_its_folder():
    assert get_engine("transformers").engine_model(SPEC) == "weights"
    assert get_engine("vllm").engine_model(SPEC) == "m"
