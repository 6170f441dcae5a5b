"""A receipt passes where all sides say the same, and fails at each way they can differ."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from maas.core.errors import EngineError, EngineUnreachable, NotFound, ReceiptFailed
from maas.finetune.receipt.engine import EngineSays
from maas.finetune.receipt.golden import write_golden, write_golden_weights
from maas.finetune.receipt.parity import THRESHOLDS, judge, measure
from maas.finetune.receipt.records import Golden, read_receipt
from tests.unit.finetune.receipt.adapters import change, tune
from tests.unit.finetune.receipt.conftest import CHATS, Tuned

MODEL = "lora-under-test"


def _measure(tuned: Tuned, engine=None, engine_dir: Path | None = None):
    return measure(
        tuned.golden,
        engine_url=engine and engine.url,
        engine_model=engine and MODEL,
        engine_dir=engine_dir,
    )


def test_same_weights_pass_on_every_leg(tuned, serve):
    receipt = _measure(tuned, serve(tuned.load()), tuned.model_dir)
    assert receipt.verdict == "passed", receipt.reasons
    assert receipt.reasons == ()
    assert receipt.same_rendering is True
    assert receipt.prompts == 2 + len(CHATS)
    for leg in receipt.legs.values():
        assert leg.status == "measured"
        assert leg.greedy_token_agreement == 1
        assert leg.max_logit_difference < 1e-3
        assert leg.effect_applied == pytest.approx(1, abs=1e-3)
    assert receipt.legs["engine"].free_run_agreement == 1
    assert receipt.hashes.engine == receipt.hashes.trainer


def test_what_the_adapter_changes_is_in_the_receipt(tuned):
    effect = _measure(tuned).effect
    assert effect.mean_logit_difference > 0.05
    assert effect.greedy_token_agreement < 1
    assert effect.effect_applied == 0


def _first_b(weights: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(weights) if "lora_B" in name)


def _permute(weights: dict[str, torch.Tensor]) -> None:
    name = _first_b(weights)
    weights[name] = weights[name].roll(1, 0).contiguous()


def _forget_a_layer(weights: dict[str, torch.Tensor]) -> None:
    for name, tensor in weights.items():
        if "layers.1." in name:
            tensor.zero_()


@pytest.mark.parametrize(
    ("wrong", "applied"),
    [
        pytest.param({"lora_alpha": 16}, 2, id="scale doubled"),
        pytest.param({"lora_alpha": 9}, 1.125, id="scale an eighth too large"),
        pytest.param({"use_rslora": True}, 2, id="scaled by the root of the rank"),
        pytest.param({"tensors": _permute}, None, id="a tensor permuted"),
        pytest.param({"tensors": _forget_a_layer}, None, id="a layer without its adapter"),
    ],
)
def test_adapter_that_is_not_applied_as_in_training_fails(tuned, serve, tmp_path, wrong, applied):
    engine = serve(tuned.load(change(tuned.adapter_dir, tmp_path / "wrong", **wrong)))
    receipt = _measure(tuned, engine)
    assert receipt.verdict == "failed"
    assert all(reason.startswith("engine: ") for reason in receipt.reasons)
    if applied:
        assert receipt.legs["engine"].effect_applied == pytest.approx(applied, rel=0.25)
        assert any("of what the adapter changes" in reason for reason in receipt.reasons)


def test_engine_that_ignores_the_adapter_fails(tuned, serve):
    receipt = _measure(tuned, serve(tuned.load().unload()))
    assert receipt.verdict == "failed"
    assert receipt.legs["engine"].effect_applied == pytest.approx(0, abs=1e-3)


def test_adapter_that_changes_little_must_still_be_applied(spread_dir, tuned, serve, tmp_path):
    adapter = tune(spread_dir, tmp_path / "weak", strength=0.1)
    weak = Tuned(spread_dir, adapter, tmp_path / "weak.json")
    write_golden(spread_dir, {adapter: weak.golden}, CHATS, dtype="float32")
    assert _measure(weak).effect.max_logit_difference < 0.2
    assert _measure(weak, serve(weak.load())).verdict == "passed"
    receipt = _measure(weak, serve(weak.load().unload()))
    assert receipt.verdict == "failed"
    assert any("0% of what the adapter changes" in reason for reason in receipt.reasons)


def test_merged_weights_that_differ_fail(tuned, tmp_path):
    golden = Golden.read(tuned.golden)
    answers = [answer.model_copy(update={"again": answer.base}) for answer in golden.answers]
    path = tmp_path / "golden.json"
    path.write_text(golden.model_copy(update={"answers": answers}).model_dump_json())
    receipt = measure(path, engine_url=None, engine_model=None)
    assert receipt.verdict == "failed"
    assert all(reason.startswith("merged: ") for reason in receipt.reasons)


def test_wrong_base_fails_by_what_it_says_and_by_its_hash(tuned, serve, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tuned.model_dir, other)
    model = AutoModelForCausalLM.from_pretrained(str(other), dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.2)
    model.save_pretrained(str(other))
    receipt = _measure(tuned, serve(tuned.load(model_dir=other)), other)
    assert receipt.verdict == "failed"
    assert any(reason.startswith("engine: ") for reason in receipt.reasons)
    assert any(reason.startswith("weights: trained with ") for reason in receipt.reasons)


def test_another_template_fails_by_its_hash_and_by_how_the_engine_renders(tuned, serve, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tuned.model_dir, other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    receipt = _measure(tuned, serve(tuned.load(), renderer=other), other)
    assert receipt.verdict == "failed"
    assert any(reason.startswith("template: ") for reason in receipt.reasons)
    assert any("renders the golden chats to other tokens" in reason for reason in receipt.reasons)
    assert receipt.hashes.engine.tokenizer == receipt.hashes.trainer.tokenizer


def test_another_tokenizer_fails_by_its_hash_and_by_how_the_engine_renders(tuned, serve, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tuned.model_dir, other)
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    # Fewer merges: the same words, in other pieces.
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:200]
    path.write_text(json.dumps(tokenizer))
    receipt = _measure(tuned, serve(tuned.load(), renderer=other), other)
    assert receipt.verdict == "failed"
    assert any(reason.startswith("tokenizer: ") for reason in receipt.reasons)
    assert receipt.same_rendering is False


def test_layout_of_tokenizer_files_does_not_matter(tuned, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tuned.model_dir, other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = other / name
        path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    config = json.loads((other / "tokenizer_config.json").read_text())
    template = other / "chat_template.jinja"
    config["chat_template"] = template.read_text()
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    template.unlink()
    assert _measure(tuned, None, other).verdict == "passed"


def test_engine_that_computes_coarser_is_judged_by_what_it_can_reach(tuned, serve):
    engine = serve(tuned.load().to(torch.bfloat16))
    ask = {"engine_url": engine.url, "engine_model": MODEL}
    strict = measure(tuned.golden, **ask)
    assert strict.verdict == "failed"
    right = measure(tuned.golden, **ask, engine_dtype="bfloat16")
    assert right.verdict == "passed", right.reasons
    assert right.thresholds["engine"] == THRESHOLDS["bfloat16"]
    assert right.thresholds["merged"] == THRESHOLDS["float32"]
    with pytest.raises(ReceiptFailed, match="int3"):
        measure(tuned.golden, **ask, engine_dtype="int3")


def test_tokens_that_one_side_does_not_name_count_by_how_likely_they_cannot_be(tuned):
    golden = Golden.read(tuned.golden)
    rows = [
        # The same likeliest token, but no other in common.
        [{max(row, key=row.__getitem__): max(row.values())} | {-1: -9.5} for row in answer.trainer]
        for answer in golden.answers
    ]
    leg = judge(golden, EngineSays(rows, None, None), None).legs["engine"]
    assert leg.greedy_token_agreement == 1
    second = [sorted(row.values())[-2] for answer in golden.answers for row in answer.trainer]
    assert leg.max_logit_difference == pytest.approx(max(second) + 9.5)


def test_numbers_that_are_none_fail(tuned, serve):
    receipt = _measure(tuned, serve(tuned.load(), is_nan=True))
    assert receipt.verdict == "failed"
    assert "no number" in receipt.reasons[0]
    json.loads(receipt.model_dump_json())


def test_without_an_engine_the_other_leg_decides_and_says_so(tuned):
    receipt = _measure(tuned)
    assert receipt.verdict == "passed"
    assert receipt.legs["engine"].status == "not_measured"
    assert receipt.legs["engine"].why == "no engine serves the model"
    assert receipt.same_rendering is None


def test_engine_without_log_probabilities_is_judged_by_its_answers(tuned, serve):
    engine = serve(tuned.load(), tells_logprobs=False)
    leg = _measure(tuned, engine).legs["engine"]
    assert (leg.status, leg.free_run_agreement) == ("measured", 1)
    assert "no log-probabilities" in leg.why
    receipt = _measure(tuned, serve(tuned.load().unload(), tells_logprobs=False))
    assert receipt.verdict == "failed"
    assert "answered with the same tokens" in receipt.reasons[0]


def test_engine_that_takes_text_only_is_judged_by_its_chat_answers(tuned, serve):
    right = _measure(tuned, serve(tuned.load(), tells_tokens=False))
    assert right.verdict == "passed"
    assert right.legs["engine"].free_run_agreement == 1
    assert right.same_rendering is None
    wrong = _measure(tuned, serve(tuned.load().unload(), tells_tokens=False))
    assert wrong.verdict == "failed"


def test_engine_that_fails_or_is_gone_is_no_verdict(tuned, serve):
    with pytest.raises(EngineError, match="500"):
        _measure(tuned, serve(tuned.load(), breaks=500))
    with pytest.raises(EngineUnreachable):
        measure(tuned.golden, engine_url="http://127.0.0.1:9", engine_model=MODEL)


def test_golden_file_is_written_once_and_whole(tuned, tmp_path):
    out = tmp_path / "golden.json"
    out.write_text("there")
    write_golden(tuned.model_dir, {tuned.adapter_dir: out}, CHATS, dtype="float32")
    assert out.read_text() == "there"
    assert [path.name for path in tuned.golden.parent.iterdir()] == ["adapter.json"]
    with pytest.raises(ReceiptFailed, match=r"golden\.json"):
        measure(out, engine_url=None, engine_model=None)


def test_two_adapters_do_not_touch_each_other(spread_dir, tuned, tmp_path, monkeypatch):
    # Few tokens: some processors compute bfloat16 slowly.
    monkeypatch.setattr("maas.finetune.receipt.golden.NUM_NEW_TOKENS", 2)
    monkeypatch.setattr("maas.finetune.receipt.golden.FIXED", ())
    strong = tune(spread_dir, tmp_path / "strong", strength=2.0)
    both = {strong: tmp_path / "strong.json", tuned.adapter_dir: tmp_path / "again.json"}
    write_golden(spread_dir, both, CHATS, dtype="bfloat16")
    alone = tmp_path / "alone.json"
    write_golden(spread_dir, {tuned.adapter_dir: alone}, CHATS, dtype="bfloat16")
    assert Golden.read(tmp_path / "again.json") == Golden.read(alone)


def test_prompts_that_are_too_long_or_asked_twice_are_left_out(spread_dir, tuned, tmp_path):
    out = tmp_path / "golden.json"
    long = [{"role": "user", "content": "word " * 600}]
    write_golden(spread_dir, {tuned.adapter_dir: out}, [CHATS[0], long, CHATS[0]], dtype="float32")
    assert len(Golden.read(out).answers) == 3


def test_whole_weights_are_compared_with_what_was_saved(spread_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(str(spread_dir), dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.2)
    trained = dict(model.named_parameters())
    saved = tmp_path / "saved"
    shutil.copytree(spread_dir, saved)
    model.save_pretrained(str(saved))
    verdicts = []
    for name, weights in (("good", saved), ("bad", spread_dir)):
        out = tmp_path / f"{name}.json"
        write_golden_weights(spread_dir, weights, lambda: trained, CHATS, dtype="float32", out=out)
        receipt = measure(out, engine_url=None, engine_model=None)
        assert set(receipt.legs) == {"engine", "saved"}
        verdicts.append(receipt.verdict)
    assert verdicts == ["passed", "failed"]


def test_receipt_reads_back_what_was_stored(tuned):
    receipt = _measure(tuned)
    assert read_receipt(json.loads(receipt.model_dump_json()), "ft:m") == receipt
    with pytest.raises(NotFound, match="ft:m has no parity receipt"):
        read_receipt(None, "ft:m")
    with pytest.raises(NotFound, match="another version"):
        read_receipt({"verdict": "passed"}, "ft:m")


def test_log_probabilities_of_a_golden_file_are_those_of_the_model(tuned):
    for answer in Golden.read(tuned.golden).answers:
        ids, start = [*answer.prompt_ids, *answer.completion_ids], len(answer.prompt_ids)
        with torch.no_grad():
            logits = tuned.load()(torch.tensor([ids])).logits[0, start - 1 : -1]
        logprobs = torch.log_softmax(logits, dim=-1)
        assert len(answer.trainer) == len(answer.completion_ids) > 0
        for row, expected, token in zip(
            answer.trainer, logprobs, answer.completion_ids, strict=True
        ):
            assert token in row
            for other, value in row.items():
                assert math.isclose(value, float(expected[other]), abs_tol=1e-4)
        assert logits.argmax(-1).tolist() == answer.completion_ids


def test_engine_is_compared_along_the_golden_answer_wherever_its_own_leads(tuned, serve, tmp_path):
    engine = serve(tuned.load(change(tuned.adapter_dir, tmp_path / "wrong", lora_alpha=12)))
    leg = _measure(tuned, engine).legs["engine"]
    golden = Golden.read(tuned.golden)
    assert leg.free_run_agreement < 1
    assert leg.num_positions == sum(len(answer.completion_ids) for answer in golden.answers)
    asked = [body["prompt"] for body in engine.serving.asked if "prompt" in body]
    assert len(asked) > len(golden.answers)
    for prompt in asked:
        whole = [[*answer.prompt_ids, *answer.completion_ids] for answer in golden.answers]
        assert any(prompt == ids[: len(prompt)] for ids in whole)
