"""Perplexity against an independent float64 computation on a real tiny model."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from compression_assets.evaluation.measure import STATES, read_states, write_states
from compression_assets.evaluation.perplexity import measure_perplexity, score
from compression_assets.evaluation.rows import MetricRow
from compression_assets.text.datasets import TokenDataset, TokenRow

VOCABULARY = 96


@pytest.fixture
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(11)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.4,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture
def dataset() -> TokenDataset:
    generator = torch.Generator().manual_seed(12)
    rows = []
    for index, length in enumerate((3, 17, 8, 30, 12)):
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        content = (torch.rand(length, generator=generator) < 0.6).tolist()
        content[-1] = True
        rows.append(TokenRow(f"row{index}", ids, content))
    return TokenDataset(rows)


def reference(model: Qwen2ForCausalLM, dataset: TokenDataset) -> float:
    """exp of the mean of -log p over content tokens, one unpadded row at a time, float64 throughout."""
    double = Qwen2ForCausalLM(model.config).double()
    double.load_state_dict(model.state_dict())
    total, count = 0.0, 0
    with torch.no_grad():
        for row in dataset:
            logits = double.eval()(torch.tensor([row.input_ids])).logits[0]
            for position in range(1, len(row.input_ids)):
                if row.content[position]:
                    scores = logits[position - 1]
                    total += float(torch.logsumexp(scores, 0) - scores[row.input_ids[position]])
                    count += 1
    return math.exp(total / count)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_perplexity_equals_the_formula_whatever_the_batches(
    model: Qwen2ForCausalLM, dataset: TokenDataset, batch_size: int
) -> None:
    result = score(model, dataset, batch_size)
    assert result.perplexity == pytest.approx(reference(model, dataset), rel=1e-5)
    assert sum(result.tokens) == dataset.n_predicted
    assert result.vocabulary == VOCABULARY


def test_the_sum_can_be_recomputed_from_the_samples(model: Qwen2ForCausalLM, dataset: TokenDataset) -> None:
    result = score(model, dataset, 2)
    samples = result.samples()
    recomputed = math.exp(sum(sample.value for sample in samples) / sum(sample.weight for sample in samples))
    assert recomputed == pytest.approx(result.rows()[0].value)
    assert [sample.item for sample in samples] == [row.id for row in dataset]


def test_template_tokens_are_read_but_not_scored(model: Qwen2ForCausalLM, dataset: TokenDataset) -> None:
    masked = TokenDataset(
        [
            TokenRow(row.id, row.input_ids, [flag and i % 2 == 0 for i, flag in enumerate(row.content)])
            for row in dataset
        ]
    )
    whole = {sample.item: sample for sample in score(model, dataset, 2).samples()}
    for sample in score(model, masked, 2).samples():
        assert sample.weight <= whole[sample.item].weight
        assert sample.value <= whole[sample.item].value + 1e-4


def double_logits(model: Qwen2ForCausalLM, row: TokenRow) -> torch.Tensor:
    """Of a whole row by itself, float64 throughout."""
    double = Qwen2ForCausalLM(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    with torch.no_grad():
        return double(torch.tensor([row.input_ids])).logits[0]


def another(model: Qwen2ForCausalLM, seed: int, vocabulary: int = VOCABULARY) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = copy.deepcopy(model.config)
    config.vocab_size = vocabulary
    return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_distance_to_the_base_is_that_of_full_distributions_in_float64(
    model: Qwen2ForCausalLM, dataset: TokenDataset, batch_size: int
) -> None:
    base, noise = copy.deepcopy(model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in base.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=noise)
    found = score(model, dataset, batch_size, base=base)
    assert found.nll == pytest.approx(score(model, dataset, batch_size).nll, rel=1e-6)
    assert found.distance is not None
    kl, agreed = [], []
    for row in dataset:
        p, q = (torch.softmax(double_logits(one, row), -1) for one in (base, model))
        content = [position - 1 for position in range(1, len(row.input_ids)) if row.content[position]]
        kl.append(sum(float((p[at] * (p[at] / q[at]).log()).sum()) for at in content))
        agreed.append(sum(int(p[at].argmax() == q[at].argmax()) for at in content))
    assert found.distance.kl == pytest.approx(kl, rel=1e-4)
    assert found.distance.agreed == agreed
    rows = {row.metric: row for row in found.distance.rows()}
    assert rows["kl_to_base"].value == pytest.approx(sum(kl) / dataset.n_predicted, rel=1e-4)
    assert rows["top_1_agreement"].value == pytest.approx(sum(agreed) / dataset.n_predicted)
    assert 0 < sum(agreed) < dataset.n_predicted
    for metric, row in rows.items():
        own = [sample for sample in found.distance.samples() if sample.metric == metric]
        recomputed = sum(sample.value or 0 for sample in own) / sum(sample.weight for sample in own)
        assert recomputed == pytest.approx(row.value)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_what_the_base_left_of_its_own_pass_stands_for_another_one(
    model: Qwen2ForCausalLM, dataset: TokenDataset, tmp_path: Path, batch_size: int
) -> None:
    ended = TokenDataset(
        [
            replace(row, ends=[i for i, flag in enumerate(row.content) if i and not flag][:2])
            for row in dataset
        ]
    )
    base = another(model, seed=5)
    own = score(base, ended, batch_size)
    assert own.states is not None
    write_states(own.states, tmp_path / STATES)
    kept = read_states(tmp_path / STATES, ended)
    beside = score(model, ended, batch_size, base=base)
    assert score(model, ended, batch_size, base=base, base_states=kept).distance == beside.distance
    other = score(model, ended, batch_size, base=base, base_states=score(model, ended, batch_size).states)
    assert other.distance != beside.distance
    assert read_states(tmp_path / "absent", ended) is None


def test_the_base_is_at_no_distance_from_itself(model: Qwen2ForCausalLM, dataset: TokenDataset) -> None:
    found = score(model, dataset, 2, base=model).distance
    assert found is not None and set(found.kl) == {0.0} and found.agreed == found.tokens


def test_ids_that_one_vocabulary_lacks_are_left_out(model: Qwen2ForCausalLM, dataset: TokenDataset) -> None:
    """As padding of a larger vocabulary: where the other ids have the same logits, nothing differs."""
    larger = another(model, seed=3, vocabulary=VOCABULARY + 8)
    for name, tensor in model.state_dict().items():
        larger.state_dict()[name][: len(tensor)] = tensor
    for one, base in ((larger, model), (model, larger)):
        found = score(one, dataset, 2, base=base).distance
        assert found is not None and found.kl == pytest.approx([0.0] * len(dataset), abs=1e-5)
        assert found.agreed == found.tokens


def test_broken_weights_are_an_error_not_a_number(model: Qwen2ForCausalLM, dataset: TokenDataset) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        score(model, dataset, 2)


def test_a_model_directory_is_scored_in_its_published_precision(
    model: Qwen2ForCausalLM, dataset: TokenDataset, tmp_path: Path
) -> None:
    published = model.to(torch.bfloat16)
    published.save_pretrained(tmp_path)
    measured = measure_perplexity(tmp_path, dataset, batch_size=2)
    assert measured.perplexity == pytest.approx(reference(published, dataset), rel=0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_row_is_finite_or_absent(value: float) -> None:
    with pytest.raises(ValueError, match="perplexity"):
        MetricRow("perplexity", value, "1", 3, higher_is_better=False)
    with pytest.raises(ValueError, match="note does not say why"):
        MetricRow("g_eval", None, "1", 0, higher_is_better=True)
    assert MetricRow("g_eval", None, "1", 0, higher_is_better=True, note="no answers").value is None
