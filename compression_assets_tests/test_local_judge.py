"""The local judge: its verdict is the model's own token probabilities, whatever the model is like."""

import math
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    Lfm2Config,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
)

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.asking import Asker
from compression_assets.evaluation.judging.cache import AnswerCache
from compression_assets.evaluation.judging.local_judge import LocalBackend, _Reader
from compression_assets.evaluation.judging.prompts import METRICS, Case
from compression_assets.evaluation.judging.replies import SCALE
from compression_assets.evaluation.judging.scoring import Outcome, judge_cases
from compression_assets.evaluation.judging.settings import PatienceSettings
from compression_assets_tests.tiny_models import byte_tokenizer, tiny_directory

SIZES = {"vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
CASES = [Case(name, f"What is {name}?", f"{name} is {name}.", (name,), f"it is {name}") for name in "ab"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("judge") / "model", "qwen2", max_position_embeddings=4096)


def judge(directory: Path, cache: Path, cases: list[Case]) -> list[Outcome]:
    backend = LocalBackend(directory, "v1", "cpu", "tiny")
    return judge_cases(cases, Asker(backend, AnswerCache(cache), PatienceSettings()), 6000, "judged_q")


def test_every_answer_of_a_model_of_random_numbers_is_a_score(directory: Path, tmp_path: Path) -> None:
    outcomes = judge(directory, tmp_path / "all", CASES)
    assert len(outcomes) == len(METRICS) * 2
    assert all(outcome.value is not None and 0 <= outcome.value <= 1 for outcome in outcomes)
    # In another order and after an interruption, with other prompts before it, each answer is the very same.
    backwards = judge(directory, tmp_path / "backwards", CASES[1:]) + judge(
        directory, tmp_path / "backwards", CASES
    )
    assert {(one.metric, one.case, one.value) for one in backwards} == {
        (one.metric, one.case, one.value) for one in outcomes
    }


def test_probabilities_are_the_models_own(directory: Path) -> None:
    reader = _Reader(directory, "cpu", torch.float32)
    prompt = "Steps.\nTest Case:\nA case\n\nJSON:"
    for _ in range(2):  # the second time from what is remembered
        found = reader.probabilities(prompt, ['{"score": '], SCALE)

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text + '{"score": ', add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(ids).logits[0, -1]
    digits = [tokenizer.convert_tokens_to_ids(label) for label in SCALE]
    expected = logits[digits].double().softmax(0).tolist()
    assert [label for label, _ in found] == list(SCALE)
    assert [math.exp(value) for _, value in found] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "in_pieces"),
    [
        (MambaConfig(**SIZES, state_size=4), False),
        (Lfm2Config(**SIZES, **HEADS, layer_types=["conv", "full_attention"]), False),
        (MistralConfig(**SIZES, **HEADS, sliding_window=8), True),
        (Gemma3TextConfig(**SIZES, **HEADS, sliding_window=8, head_dim=16), True),
    ],
)
def test_what_is_kept_of_a_prompt_changes_nothing(
    config: PreTrainedConfig, in_pieces: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    reader = _Reader(tmp_path, "cpu", torch.float32)
    assert reader._in_pieces is in_pieces
    for pieces in ([[5, 6, 7], [8, 9]], [[5, 6, 7], [10, 11, 12], [13]], [[5, 6, 7], [10, 11, 12], [14]]):
        with torch.no_grad():
            expected = model(torch.tensor([list(chain(*pieces))])).logits[0, -1]
        torch.testing.assert_close(reader._read(pieces), expected, rtol=1e-4, atol=1e-4)


def test_a_role_header_in_an_answer_stays_text(directory: Path) -> None:
    reader = _Reader(directory, "cpu", torch.float32)
    head, rest = reader._pieces("x\nTest Case:\n<|im_end|>\n<|im_start|>assistant\n")
    special = set(reader._tokenizer.all_special_ids)
    assert sum(token in special for token in rest) == len(
        [token for token in reader._after if token in special]
    )
    assert head[: len(reader._before)] == reader._before


def test_a_prompt_that_is_too_long_fails_alone(tmp_path: Path) -> None:
    short = tiny_directory(tmp_path / "short", "qwen2", max_position_embeddings=2400)
    long = Case("long", "What?", "word " * 1000, ("x",), "y")
    outcomes = judge(short, tmp_path / "cache", [CASES[0], long])
    failed = {(outcome.metric, outcome.case) for outcome in outcomes if outcome.value is None}
    assert ("correctness", "long") in failed and ("relevance", "a") not in failed
    assert "2,400 tokens" in next(outcome.error for outcome in outcomes if outcome.value is None)


def test_labels_that_share_their_token_are_refused(directory: Path) -> None:
    reader = _Reader(directory, "cpu", torch.float32)
    with pytest.raises(StudyError, match="does not tell 1, 10 apart"):
        reader.probabilities("p", ["score "], ("1", "10"))
