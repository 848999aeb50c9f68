"""Generation: the same tokens as transformers' own loop, alone and in company, and every way to end."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, MistralConfig, PreTrainedModel

from compression_assets.evaluation import generation
from compression_assets.evaluation.generation import batches, generate, segments
from compression_assets_tests.tiny_models import tiny_model

NEW = 12


def prompts() -> list[list[int]]:
    """Two families with a long common passage, singles of very different length, and one that begins another."""
    dice = random.Random(3)

    def letters(count: int) -> list[int]:
        return [dice.randrange(256) for _ in range(count)]

    head, one, two = letters(7), letters(40), letters(25)
    families = [head + one + letters(3 + 4 * k) for k in range(3)] + [
        head + two + letters(5 + k) for k in range(2)
    ]
    return [*families, head + letters(1), head + letters(130), head + two, head + two + [9], head + one]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(num_hidden_layers=2)


def alone(model: PreTrainedModel, prompt: list[int]) -> tuple[int, ...]:
    """What transformers' own loop answers to one prompt, eagerly."""
    model.set_attn_implementation("eager")
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    return tuple(
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[
            0, len(prompt) :
        ].tolist()
    )


def test_company_changes_nothing(model: PreTrainedModel) -> None:
    expected = [alone(model, prompt) for prompt in prompts()]
    assert len(set(expected)) > 5
    for size in (1, 3, 64):
        answers = generate(model, prompts(), set(), NEW, batch_size=size)
        assert [answer.tokens for answer in answers] == expected
        assert not any(answer.finished for answer in answers)


def test_a_stop_token_ends_a_row_and_not_its_neighbours(model: PreTrainedModel) -> None:
    expected = [alone(model, prompt) for prompt in prompts()]
    stop = {expected[0][2], expected[3][0], expected[6][5]}
    answers = generate(model, prompts(), stop, NEW)
    for answer, whole in zip(answers, expected, strict=True):
        end = next((place for place, token in enumerate(whole) if token in stop), None)
        assert answer.tokens == (whole if end is None else whole[:end])
        assert answer.finished == (end is not None)
        assert answer.n_tokens == (NEW if end is None else end + 1)
    assert answers[3].tokens == ()


def test_samples_depend_on_the_prompt_and_the_seed_alone(model: PreTrainedModel) -> None:
    together = generate(model, prompts(), set(), NEW, temperature=1.0, seed=1)
    assert [
        generate(model, [prompt], set(), NEW, temperature=1.0, seed=1)[0] for prompt in prompts()
    ] == together
    assert generate(model, prompts()[::-1], set(), NEW, 4, temperature=1.0, seed=1)[::-1] == together
    assert generate(model, prompts(), set(), NEW, temperature=1.0, seed=2) != together


def test_samples_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])) * 2
    rows = [[number] for number in range(4000)]
    chooser = generation.Chooser(rows, temperature=2.0, seed=0)
    drawn = torch.tensor(chooser(logits.expand(len(rows), -1), range(len(rows))))
    shares = torch.bincount(drawn, minlength=3) / len(rows)
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_levels_put_every_prompt_together_again() -> None:
    levels = segments(prompts())
    for index, prompt in enumerate(prompts()):
        whole, row = [], index
        for parents, rows in reversed(levels):
            whole = rows[row] + whole
            row = parents[row]
        assert whole == prompt
    assert all(rest for rest in levels[-1][1])
    read = sum(len(row) for _, rows in levels for row in rows)
    assert read < 0.75 * sum(map(len, prompts()))
    assert segments([[1, 2, 3]])[-1][1] == [[1, 2, 3]]


def test_batches_hold_every_prompt_once_within_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BATCH_POSITIONS", 400)
    found = list(batches(prompts(), batch_size=4, max_new_tokens=NEW))
    assert sorted(index for batch in found for index in batch) == list(range(len(prompts())))
    for batch in found:
        longest = max(len(prompts()[index]) for index in batch)
        assert len(batch) <= 4
        assert len(batch) == 1 or len(batch) * (longest + NEW) <= 400


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                      num_key_value_heads=2, sliding_window=8),
        MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=1, state_size=4, pad_token_id=0),
    ],
)  # fmt: skip
def test_models_with_another_memory_answer_too(config: object) -> None:
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    answers = generate(other, prompts()[:4], set(), NEW)
    assert [answer.tokens for answer in answers] == [alone(other, prompt) for prompt in prompts()[:4]]
    stopped = generate(other, prompts()[:2], {answers[0].tokens[3]}, NEW, temperature=0.0)
    assert stopped[0].finished and stopped[0].n_tokens <= 4


def test_broken_weights_are_an_error(model: PreTrainedModel) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="weights are broken"):
        generate(broken, prompts()[:2], set(), 2)
