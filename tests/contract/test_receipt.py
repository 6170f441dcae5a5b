"""A real engine passes the parity receipt with the adapter that was tuned, and no other."""

import asyncio
from pathlib import Path

import pytest

from maas.finetune.receipt.golden import write_golden
from maas.finetune.receipt.parity import measure
from tests.contract.conftest import EnginePool, Served
from tests.unit.finetune.receipt.adapters import change, tune

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture(scope="module")
def tuned(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter of SmolLM2, and its golden file in the dtype of the contract's engine."""
    folder = tmp_path_factory.mktemp("tuned")
    adapter, golden = tune(smollm2_dir, folder / "adapter", strength=4.0), folder / "golden.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maas.finetune.receipt.golden.NUM_NEW_TOKENS", 16)
        write_golden(smollm2_dir, {adapter: golden}, [], dtype="bfloat16")
    return adapter, golden


async def _verdict(vllm: Served, golden: Path, adapter: Path | None):
    model = vllm.model
    if adapter is not None:
        model = f"lora-{adapter.name}"
        await vllm.adapter.load_adapter(
            vllm.client, vllm.url, adapter_name=model, adapter_dir=adapter
        )
    try:
        # It has a loop of its own.
        return await asyncio.to_thread(
            measure, golden, engine_url=vllm.url, engine_model=model, engine_dir=vllm.model_dir
        )
    finally:
        if adapter is not None:
            await vllm.adapter.unload_adapter(vllm.client, vllm.url, adapter_name=model)


async def test_right_adapter_passes_and_wrong_ones_fail(pool: EnginePool, tuned, tmp_path):
    vllm = await pool.get("vllm")
    adapter, golden = tuned
    right = await _verdict(vllm, golden, adapter)
    assert right.verdict == "passed", right.reasons
    assert right.legs["engine"].greedy_token_agreement >= 0.95
    assert right.same_rendering is True
    assert right.hashes.engine == right.hashes.trainer
    for wrong in (None, change(adapter, tmp_path / "doubled", lora_alpha=16)):
        receipt = await _verdict(vllm, golden, wrong)
        assert receipt.verdict == "failed", receipt
