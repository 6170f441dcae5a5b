"""``maas model receipt``: what a tuned model's row holds, for people and for scripts."""

import dataclasses

import pytest
from rich.console import Console

from maas.bootstrap import open_store, resolve_settings
from maas.cli.receipt import render_receipt
from maas.core.errors import NotFound
from maas.finetune.receipt.parity import THRESHOLDS
from maas.finetune.receipt.records import Hashes, Identity, Leg, Receipt
from maas.store.adapters import TunedKind, TunedModel, TunedState
from maas.store.state import ensure_project

NAME = "ft:base:acme::abc"
MEASURED = Leg(
    status="measured",
    num_positions=90,
    greedy_token_agreement=0.75,
    free_run_agreement=0.5,
    max_logit_difference=2.5,
    mean_logit_difference=0.25,
    effect_applied=1.98,
)


def _receipt(verdict: str = "failed", **fields) -> Receipt:
    return Receipt(
        **{
            "verdict": verdict,
            "reasons": ("engine: 198% of what the adapter changes is there",),
            "dtype": "float32",
            "prompts": 6,
            "positions": 90,
            "effect": MEASURED,
            "legs": {"engine": MEASURED, "merged": Leg(status="not_measured", why="no room")},
            "hashes": Hashes(
                trainer=Identity(template="a" * 64, tokenizer="b" * 64, weights="c" * 64),
                engine=None,
                adapter="d" * 64,
            ),
            "same_rendering": True,
            "engine_dtype": None,
            "thresholds": {"engine": THRESHOLDS["float32"]},
            "versions": {"torch": "2.13.0"},
            "created_at": 1.0,
        }
        | fields
    )


def _add(maas, receipt: Receipt | None) -> None:
    store = open_store(resolve_settings())
    fields = dict.fromkeys(field.name for field in dataclasses.fields(TunedModel))
    project = ensure_project(store.database, store.clock)
    model = TunedModel(
        **fields
        | {
            "id": NAME,
            "project_id": project,
            "base_model_id": "base",
            "kind": TunedKind.FULL,
            "state": TunedState.CANDIDATE,
            "lineage": {},
            "licence": {},
            "created_at": 1.0,
        }
    )
    store.tuned_models.add(model)
    if receipt is not None:
        store.tuned_models.judge(
            NAME, state=TunedState.REFUSED, receipt=receipt.model_dump(mode="json")
        )
    store.database.close()


@pytest.mark.parametrize(("verdict", "code"), [("passed", 0), ("failed", 1)])
def test_receipt_is_shown_whole_and_its_verdict_is_the_exit_code(maas, verdict, code):
    receipt = _receipt(verdict)
    _add(maas, receipt)
    shown = maas("model", "receipt", NAME, code=code)
    assert shown == {"model": NAME, **receipt.model_dump(mode="json")}


def test_unknown_model_and_one_without_a_receipt_are_told_apart(maas):
    _add(maas, None)
    with pytest.raises(NotFound, match="no tuned model has the name 'ft:x'"):
        maas("model", "receipt", "ft:x")
    with pytest.raises(NotFound, match="has no parity receipt"):
        maas("model", "receipt", NAME)


def test_person_sees_verdict_reasons_figures_and_what_was_not_measured():
    console = Console(record=True, width=140, markup=False)
    render_receipt(console, NAME, _receipt())
    text = console.export_text()
    for part in (
        f"{NAME}: failed",
        "198% of what the adapter changes",
        "75.0%",
        "2.500000",
        "not measured: no room",
        "a" * 16,
        "chats rendered alike: yes",
        "6 golden prompts, 90 tokens, float32, torch 2.13.0",
    ):
        assert part in text
