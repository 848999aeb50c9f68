"""Every architecture goes through every step and is scored as transformers' own forward pass has it, or is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Mamba2Config, MambaConfig, PreTrainedConfig

from compression_assets.evaluation import perplexity
from compression_assets.evaluation.clarity import answer_perplexities
from compression_assets.evaluation.perplexity import measure_perplexity, score
from compression_assets.machine import precision
from compression_assets.sources.models import DirectoryModel, fetch_model
from compression_assets.sources.random_model import byte_tokenizer
from compression_assets.techniques.dequantization.apply import dequantize_checkpoint
from compression_assets.techniques.distillation import Distillation
from compression_assets.techniques.distillation.recipe import DistillationRecipe
from compression_assets.techniques.pruning import Pruning
from compression_assets.techniques.pruning.blocks import ffn_blocks, prune_ffn
from compression_assets.techniques.pruning.predict import pruned
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.techniques.pruning.refusal import refusal as refusal_of_p
from compression_assets.techniques.pruning.width import ffn_importance
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.techniques.quantization.refusal import refusal as refusal_of_q
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.training.finetuning import FinetuneRecipe, finetune
from compression_assets.training.refusal import refusal as refusal_of_training
from compression_assets.training.teacher.teacher_logits import TeacherLogitsRecipe, write_teacher_logits
from compression_assets.weights import architectures as known
from compression_assets.weights.checkpoints import load_for_scoring, load_full_precision, read_config
from compression_assets.weights.layers import linear_layers
from compression_assets.weights.logits import head_makes_logits
from compression_assets_tests import architectures
from compression_assets_tests.architectures import config_of
from compression_assets_tests.training_helpers import recipe_of

EXPECTED_REFUSALS = {
    **{name: {"Q"} for name in architectures.NO_LINEAR_LAYERS},
    **{name: {"P"} for name in architectures.WIDTH_OUT_OF_CODE},
    **{name: {"P", "KD"} for name in architectures.OTHER_LOGITS},
    **{name: {"P", "Q", "KD"} for name in architectures.WITH_EXPERTS},
}
"""Architecture -> steps that it is refused from; everything else takes all of them."""

TRAINING: dict[str, Any] = {"warmup_steps": 0, "batch_size": 4, "gradient_accumulation": 1, "epochs": 1}


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch, float32: None) -> None:
    monkeypatch.setattr(precision, "compute_dtype", lambda device: torch.float32)


def rows(seed: int) -> TokenDataset:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, length in enumerate((9, 24, 17, 30)):
        ids = torch.randint(0, 256, (length,), generator=generator).tolist()
        made.append(TokenRow(f"{seed}-{index}", ids, [place > 1 for place in range(length)]))
    return TokenDataset(made)


def released(folder: Path, name: str, **changes: Any) -> Path:
    """A directory as its authors would have published it, with logits far from uniform."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config_of(name, **changes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((0.2 if parameter.ndim == 1 else 0.15) * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def reference(directory: Path) -> float:
    """exp of the mean loss over content tokens, row by row, by `model(...).logits` in float32."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    losses = []
    with torch.no_grad():
        for row in rows(0):
            logs = model(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
            losses += [
                -logs[t - 1, row.input_ids[t]].item() for t in range(1, len(row.input_ids)) if row.content[t]
            ]
    return math.exp(sum(losses) / len(losses))


def assert_scored_as_it_is(directory: Path) -> None:
    assert measure_perplexity(directory, rows(0), batch_size=3).perplexity == pytest.approx(
        reference(directory), rel=1e-4
    )


@pytest.mark.parametrize("name", architectures.ALL)
def test_every_architecture_through_every_step_that_takes_it(name: str, tmp_path: Path) -> None:
    given, base = released(tmp_path / "given", name), tmp_path / "base"
    fetch_model(DirectoryModel(kind="directory", path=str(given)), base, tmp_path)
    assert measure_perplexity(base, rows(0), batch_size=3).perplexity == pytest.approx(
        reference(given), rel=1e-4
    )
    assert_scored_as_it_is(base)

    config, last = read_config(base).to_dict(), base
    p_recipe = PruningRecipe(ratio=0.5, multiple_of=64, finetune=FinetuneRecipe(**TRAINING))
    refused = {
        "P": refusal_of_p(config, p_recipe),
        "Q": refusal_of_q(config, QuantizationRecipe()),
        "KD": refusal_of_training(config),
    }
    assert {step for step, reason in refused.items() if reason} == EXPECTED_REFUSALS.get(name, set())
    data = {}
    for asset, seed in (("calibration_set", 1), ("finetuning_set", 2), ("distillation_set", 3)):
        data[asset] = tmp_path / asset
        rows(seed).save(data[asset])
    if refused["P"] is None:
        report = Pruning.apply(StepInputs(last, tmp_path / "p", p_recipe, data, seed=0))
        assert all(check.passed for check in report.checks)
        last = tmp_path / "p"
        assert_scored_as_it_is(last)
    if refused["Q"] is None:
        report = quantize_checkpoint(last, tmp_path / "q", QuantizationRecipe())
        assert all(check.passed for check in report.checks)
        assert report.metadata["covered_share"] > 0.95
        assert report.metadata["answers_on"] == ["cpu"]  # loaded and run by transformers and bitsandbytes
        report = dequantize_checkpoint(tmp_path / "q", tmp_path / "d")
        assert all(check.passed for check in report.checks)
        last = tmp_path / "d"
        assert_scored_as_it_is(last)
        quantized = measure_perplexity(tmp_path / "q", rows(0)).perplexity
        assert quantized == pytest.approx(reference(last), rel=0.05)
    if refused["KD"] is None:
        data["teacher_logits"] = tmp_path / "teacher_logits"
        coding = TeacherLogitsRecipe(coding="hidden")
        write_teacher_logits(
            base,
            data["distillation_set"],
            data["teacher_logits"],
            coding,
            temperature=2.0,
            teacher_fingerprint="t",
        )
        report = Distillation.apply(
            StepInputs(last, tmp_path / "kd", DistillationRecipe(**TRAINING), data, seed=0)
        )
        assert all(check.passed for check in report.checks)
        assert_scored_as_it_is(tmp_path / "kd")


def tiny(name: str, **changes: Any) -> Any:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config_of(name, **changes), dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", ["Phi3", "Glm4", "GPTNeoX", "Starcoder2", "OPT", "Falcon", "GPT2"])
def test_a_cut_block_is_the_original_with_neurons_at_zero(name: str) -> None:
    cut, zeroed = tiny(name), tiny(name)
    width = ffn_blocks(cut)[0].width
    keep = [
        torch.randperm(width, generator=torch.Generator().manual_seed(n))[:50].sort().values for n in (1, 2)
    ]
    for block, kept in zip(ffn_blocks(zeroed), keep, strict=True):
        removed = torch.ones(width, dtype=torch.bool)
        removed[kept] = False
        block.reading.register_forward_pre_hook(
            lambda _, args, removed=removed: (args[0].masked_fill(removed, 0.0),)
        )
    prune_ffn(cut, keep)
    inputs = torch.arange(30).reshape(2, 15)
    torch.testing.assert_close(cut(inputs).logits, zeroed(inputs).logits, rtol=1e-9, atol=1e-9)
    fresh = AutoModelForCausalLM.from_config(cut.config)
    assert {n: p.shape for n, p in fresh.state_dict().items()} == {
        n: p.shape for n, p in cut.state_dict().items()
    }


def fused(mlp: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up = mlp.gate_up_proj.weight[:128], mlp.gate_up_proj.weight[128:]
    inner = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    return inner, gate.abs().sum(1) + up.abs().sum(1)


def plain(mlp: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = mlp.dense_h_to_4h.weight, mlp.dense_h_to_4h.bias
    return torch.nn.functional.gelu(x @ weight.T + bias), weight.abs().sum(1)


@pytest.mark.parametrize(("name", "formula"), [("Phi3", fused), ("GPTNeoX", plain)])
def test_importance_of_fused_and_plain_neurons_is_the_formula(name: str, formula: Any) -> None:
    model, data = tiny(name), rows(4)
    layers = model.base_model.layers
    sums = [torch.zeros(128, dtype=torch.float64) for _ in layers]
    weights: list[torch.Tensor] = [torch.empty(0)] * len(layers)
    for row in data:
        seen: list[torch.Tensor] = []
        hooks = [
            layer.mlp.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0]))
            for layer in layers
        ]
        with torch.no_grad():
            model(torch.tensor([row.input_ids]))
            for hook in hooks:
                hook.remove()
            for index, (layer, x) in enumerate(zip(layers, seen, strict=True)):
                inner, weights[index] = formula(layer.mlp, x[torch.tensor(row.content)])
                sums[index] += inner.abs().sum(0)
    found = ffn_importance(model, data, PruningRecipe(weight_share=0.4), "cpu")
    for index, scores in enumerate(found):
        activation = sums[index] / sums[index].max()
        expected = 0.4 * weights[index] / weights[index].max() + 0.6 * activation
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


def test_pruned_configs_are_what_pruned_models_have() -> None:
    recipe = PruningRecipe(ratio=0.3, multiple_of=1)
    for name, key, kept in (
        ("OPT", "ffn_dim", 90),
        ("GPT2", "n_inner", 180),
        ("Phi3", "intermediate_size", 90),
    ):
        config = pruned(config_of(name).to_dict(), recipe)
        assert config[key] == config["intermediate_size"] == kept
        assert pruned(config, recipe)[key] == kept - int(0.3 * kept)


@pytest.mark.parametrize("name", architectures.OTHER_LOGITS)
def test_a_scale_or_cap_is_seen_whatever_the_weights(name: str) -> None:
    """Weights of almost nothing make logits that no cap changes; the output layer is another model all the same."""
    model = AutoModelForCausalLM.from_config(config_of(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-4)
    assert not head_makes_logits(model)
    neutral = {"logits_scaling": 1.0, "logit_scale": 1.0, "final_logit_softcapping": None}
    changes = {key: neutral[key] for key in architectures.OTHER_LOGITS[name].keys() & neutral.keys()}
    assert head_makes_logits(AutoModelForCausalLM.from_config(config_of(name, **changes)).eval())
    for config, alone in ((config_of(name), False), (config_of(name, **changes), True)):
        assert known.head_makes_logits(config.to_dict()) is alone


@pytest.mark.parametrize("kind", [MambaConfig, Mamba2Config])
def test_a_model_without_attention_is_scored_and_trained(kind: type[PreTrainedConfig]) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 259, "pad_token_id": 0}
    config = kind(**sizes) if kind is MambaConfig else kind(**sizes, num_heads=8, head_dim=16)
    model, data = AutoModelForCausalLM.from_config(config).float().eval(), rows(0)
    total = 0.0
    for row in data:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(
                model(ids).logits[0, :-1], ids[0, 1:], reduction="none"
            )
        total += float(losses[torch.tensor(row.content[1:])].sum())
    assert sum(score(model, data, batch_size=2).nll) == pytest.approx(total, rel=1e-5)
    assert known.head_makes_logits(config.to_dict())
    done = finetune(model, data, recipe_of(epochs=4, learning_rate=1e-2), 0)
    assert done.loss_curve[-1]["ce"] < done.loss_curve[0]["ce"]


def test_long_batches_are_scored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny("Granite").float(), rows(0)
    whole = score(model, data, batch_size=4)
    monkeypatch.setattr(perplexity, "HEAD_ROWS", 7)
    assert score(model, data, batch_size=4).nll == pytest.approx(whole.nll, rel=1e-6)


def test_caps_on_attention_are_computed_wherever_a_model_is_loaded(tmp_path: Path) -> None:
    """Fused kernels leave them out without a word."""
    given = released(tmp_path / "given", "Gemma2", attn_logit_softcapping=0.5)
    fetch_model(DirectoryModel(kind="directory", path=str(given)), tmp_path / "base", tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(given, dtype=torch.float32, attn_implementation="eager")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        for load in (load_full_precision, lambda path: load_for_scoring(path, "cpu", torch.float32)):
            torch.testing.assert_close(load(tmp_path / "base")(ids).logits, expected(ids).logits)


def test_fluency_is_that_of_the_models_own_logits(tmp_path: Path) -> None:
    given = released(tmp_path / "given", "Granite")
    (found,) = answer_perplexities(["A short answer."], given, batch_size=1)
    model = AutoModelForCausalLM.from_pretrained(given, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given)
    ids = [256, *tokenizer("A short answer.")["input_ids"]]
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert tokenizer.convert_ids_to_tokens(256) == "<|endoftext|>"
    assert found == pytest.approx(math.exp(loss), rel=1e-4)


def test_what_mamba_multiplies_by_itself_is_no_linear_layer() -> None:
    config = {
        **architectures.IDS,
        "model_type": "mamba",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "state_size": 8,
    }
    names = linear_layers(known.empty(config))
    assert len(names) == 6 and not any(name.endswith("dt_proj") for name in names)


def test_a_number_that_json_cannot_write_is_read_as_transformers_wrote_it() -> None:
    limit = {"time_step_limit": [0.0, {"__float__": "Infinity"}]}
    read = known.as_transformers(
        {
            **architectures.IDS,
            "model_type": "mamba2",
            "hidden_size": 64,
            "num_heads": 8,
            "head_dim": 16,
            **limit,
        }
    )
    assert tuple(read.time_step_limit) == (0.0, float("inf"))
