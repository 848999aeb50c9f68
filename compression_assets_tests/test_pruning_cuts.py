"""P by depth and by heads: the cut against skipped layers and silenced heads, sizes, origins, refusals, a study."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning import Pruning
from compression_assets.techniques.pruning.amounts import kept_of
from compression_assets.techniques.pruning.calibration import Calibration
from compression_assets.techniques.pruning.choice import Choice
from compression_assets.techniques.pruning.depth import choose_layers, cut_layers, hidden_changes
from compression_assets.techniques.pruning.heads import cut_groups, group_importance
from compression_assets.techniques.pruning.hidden import channel_importance, cut_channels
from compression_assets.techniques.pruning.loss_change import losses_without_layers
from compression_assets.techniques.pruning.predict import pruned
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.techniques.pruning.refusal import refusal
from compression_assets.techniques.pruning.width import ffn_importance
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.text.datasets import TokenRow
from compression_assets.weights.shapes import parameters
from compression_assets_tests.architectures import config_of
from compression_assets_tests.project import Project
from compression_assets_tests.test_pruning import dataset, prune
from compression_assets_tests.tiny_models import tiny_directory

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
KINDS = ("Llama", "Qwen2", "Qwen3", "Gemma")
INPUTS = torch.arange(30).reshape(2, 15)


def model_of(name: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name, **changes), dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", KINDS)
def test_a_model_without_layers_is_the_original_that_skips_them(name: str) -> None:
    model = model_of(name, num_hidden_layers=4)
    cut = cut_layers(model, Choice([torch.tensor([0, 3])], []), model.config.to_dict())
    assert cut.names["model.layers.1"] == "model.layers.3"
    for index in (1, 2):
        model.model.layers[index].forward = lambda hidden_states, **_: hidden_states
    torch.testing.assert_close(cut.model(INPUTS).logits, model(INPUTS).logits, rtol=1e-9, atol=1e-9)


def test_layers_that_compute_by_their_number_are_not_cut() -> None:
    by_number = model_of("GPT2", scale_attn_by_inverse_layer_idx=True, n_layer=4)
    choice = Choice([torch.tensor([0, 3])], [])
    with pytest.raises(StudyError, match="'gpt2' cannot be cut in depth"):
        cut_layers(by_number, choice, by_number.config.to_dict())
    plain = model_of("GPT2", n_layer=4)
    assert cut_layers(plain, choice, plain.config.to_dict()).model.config.n_layer == 2


@pytest.mark.parametrize("name", KINDS)
def test_a_model_without_groups_is_the_original_with_their_heads_at_zero(name: str) -> None:
    model = model_of(name, **HEADS)
    keep = [torch.tensor([0, 3]), torch.tensor([1, 2])]
    cut = cut_groups(model, Choice(keep, []), model.config.to_dict()).model
    size = cut.config.head_dim
    assert (cut.config.num_attention_heads, cut.config.num_key_value_heads) == (4, 2)
    for layer, kept in zip(model.model.layers, keep, strict=True):
        stays = torch.zeros(4, dtype=torch.bool)
        stays[kept] = True
        silent = ~stays.repeat_interleave(2 * size)
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, silent=silent: (args[0].masked_fill(silent, 0.0),)
        )
    torch.testing.assert_close(cut(INPUTS).logits, model(INPUTS).logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cut", ["depth", "heads", "hidden"])
@pytest.mark.parametrize("name", KINDS)
def test_the_size_is_predicted(name: str, cut: str) -> None:
    model = model_of(name, num_hidden_layers=4, **HEADS)
    config, recipe = model.config.to_dict(), PruningRecipe(cut=cut, ratio=0.5)
    assert refusal(config, recipe) is None
    if cut == "depth":
        made = cut_layers(model, Choice([torch.tensor([1, 2])], []), config)
    elif cut == "hidden":
        made = cut_channels(model, Choice([torch.arange(32)], []), config)
    else:
        made = cut_groups(model, Choice([torch.tensor([1, 2])] * 4, []), config)
    assert parameters(pruned(config, recipe)) == made.model.num_parameters()


@pytest.mark.parametrize("name", [*KINDS, "Gemma3Text", "SmolLM3"])
def test_a_model_without_channels_is_the_original_with_them_at_zero(name: str) -> None:
    model = model_of(name, **({"attention_bias": True} if name == "Llama" else {}))
    kept = torch.randperm(64, generator=torch.Generator().manual_seed(2))[:48].sort().values
    cut = cut_channels(model, Choice([kept], []), model.config.to_dict()).model
    assert (cut.config.hidden_size, cut.config.head_dim) == (48, 16)
    removed = torch.ones(64, dtype=torch.bool)
    removed[kept] = False
    with torch.no_grad():
        model.get_input_embeddings().weight[:, removed] = 0
        for layer in model.model.layers:
            for writes in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writes.weight[removed] = 0
                if writes.bias is not None:
                    writes.bias[removed] = 0
    # transformers computes norms in float32; those of queries and keys get the epsilon that hidden states' need.
    near = 1e-4 if name in ("Qwen3", "Gemma3Text") else 1e-5
    torch.testing.assert_close(cut(INPUTS).logits, model(INPUTS).logits, rtol=near, atol=near)


def test_importance_of_channels_is_the_formula() -> None:
    model, data = model_of("Qwen2"), dataset(4)
    found = channel_importance(model, data, PruningRecipe(cut="hidden", weight_share=0.3), "cpu")
    norms = [
        n for layer in model.model.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)
    ]
    seen: list[torch.Tensor] = []
    for norm in (*norms, model.model.norm):
        norm.register_forward_hook(lambda _module, _args, output: seen.append(output[0]))
    activation = torch.zeros(64, dtype=torch.float64)
    for row in data:
        with torch.no_grad():
            model(torch.tensor([row.input_ids]))
        activation += sum(one[torch.tensor(row.content)].abs().sum(0) for one in seen)
        seen.clear()
    weight = torch.zeros(64, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            weight += parameter.detach().abs().sum(1 if "o_proj" in name or "down_proj" in name else 0)
    expected = 0.3 * weight / weight.max() + 0.7 * activation / activation.max()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def summed_loss(model: PreTrainedModel, row: TokenRow) -> torch.Tensor:
    ids = torch.tensor([row.input_ids])
    logs = model(ids).logits[0].log_softmax(-1)
    return -sum(logs[t - 1, ids[0, t]] for t in range(1, len(row.content)) if row.content[t])


@pytest.mark.parametrize("cut", ["width", "heads", "hidden"])
def test_importance_by_loss_is_the_gradient_of_a_mask(cut: str) -> None:
    model, data = model_of("Qwen3"), dataset(4)
    recipe = PruningRecipe(cut=cut, importance="loss")
    measures = {"width": ffn_importance, "heads": group_importance}
    found = (
        measures[cut](model, data, recipe, "cpu")
        if cut in measures
        else [channel_importance(model, data, recipe, "cpu")]
    )
    masked, layers = model_of("Qwen3"), 1 if cut == "hidden" else 2
    units = {"width": 128, "heads": 2, "hidden": 64}[cut]
    masks = [torch.ones(units, dtype=torch.float64, requires_grad=True) for _ in range(layers)]
    for layer in masked.model.layers:
        mask = masks[0] if cut == "hidden" else masks[layer.self_attn.layer_idx]
        if cut == "hidden":
            for writes in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writes.register_forward_hook(lambda _module, _args, output, mask=mask: output * mask)
        else:
            reads, wide = (layer.mlp.down_proj, 1) if cut == "width" else (layer.self_attn.o_proj, 32)
            reads.register_forward_pre_hook(
                lambda _, args, mask=mask, wide=wide: (args[0] * mask.repeat_interleave(wide),)
            )
    if cut == "hidden":
        masked.model.embed_tokens.register_forward_hook(lambda _module, _args, output: output * masks[0])
    expected = [torch.zeros(units, dtype=torch.float64) for _ in masks]
    for row in data:
        for total, gradient in zip(
            expected, torch.autograd.grad(summed_loss(masked, row), masks), strict=True
        ):
            total += gradient.abs()
    tokens = sum(row.n_predicted for row in data)
    for scores, total in zip(found, expected, strict=True):
        torch.testing.assert_close(scores, total / tokens, rtol=1e-3, atol=1e-6)


def test_layers_of_least_loss_go() -> None:
    model, data = model_of("Llama", num_hidden_layers=4), dataset(3)
    found = losses_without_layers(model, data)
    tokens = sum(row.n_predicted for row in data)
    for index, layer in enumerate(model.model.layers):
        own, layer.forward = layer.forward, lambda hidden_states, **_: hidden_states
        with torch.no_grad():
            assert sum(summed_loss(model, row).item() for row in data) / tokens == pytest.approx(
                found[index].item()
            )
        layer.forward = own
    kept = choose_layers(model, data, PruningRecipe(cut="depth", layers="loss"), [2], "cpu")[2].kept[0]
    assert kept.tolist() == sorted(found.argsort()[2:].tolist())


def test_hidden_changes_are_the_formula_and_choose_the_layers() -> None:
    model, data = model_of("Llama", num_hidden_layers=4), dataset(3)
    for length in (1, 2):
        expected = torch.zeros(5 - length, dtype=torch.float64)
        for row in data:
            states: list[torch.Tensor] = []
            hooks = [
                layer.register_forward_pre_hook(lambda _, args, states=states: states.append(args[0][0]))
                for layer in (*model.model.layers, model.model.norm)
            ]
            with torch.no_grad():
                model(torch.tensor([row.input_ids]))
            for hook in hooks:
                hook.remove()
            for first in range(5 - length):
                a, b = (states[index][torch.tensor(row.content)] for index in (first, first + length))
                expected[first] += (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).sum()
        expected /= sum(sum(row.content) for row in data)
        found = hidden_changes(model, Calibration(data, 3, "cpu"), length)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        recipe = PruningRecipe(cut="depth", layers="block" if length == 2 else "influence")
        kept = choose_layers(model, data, recipe, [2], "cpu")[2].kept[0].tolist()
        if length == 2:
            first = int(expected.argmin())
            assert kept == [index for index in range(4) if index not in (first, first + 1)]
        else:
            assert kept == sorted(expected.argsort()[2:].tolist())


def test_importance_of_groups_is_the_formula() -> None:
    model, data = model_of("Llama"), dataset(4)
    found = group_importance(model, data, PruningRecipe(cut="heads", weight_share=0.3), "cpu")
    for layer, scores in zip(model.model.layers, found, strict=True):
        attention, seen = layer.self_attn, []
        hook = attention.o_proj.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0]))
        total = torch.zeros(64, dtype=torch.float64)
        for row in data:
            with torch.no_grad():
                model(torch.tensor([row.input_ids]))
            total += seen.pop()[torch.tensor(row.content)].abs().sum(0)
        hook.remove()
        activation = F.avg_pool1d(total[None], 32)[0]
        weight = sum(
            matrix.weight.detach().abs().reshape(2, -1).sum(1)
            for matrix in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        expected = 0.3 * weight / weight.max() + 0.7 * activation / activation.max()
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("cut", ["width", "depth", "heads", "hidden"])
def test_a_target_leaves_the_largest_model_within_it(cut: str) -> None:
    config = config_of("Llama", num_hidden_layers=8, **HEADS).to_dict()
    recipe = PruningRecipe(cut=cut, target=0.85)
    kept = kept_of(config, cut, recipe)
    sizes = {
        n: {
            "width": {"intermediate_size": n},
            "depth": {"num_hidden_layers": n},
            "heads": {"num_key_value_heads": n, "num_attention_heads": 2 * n},
            "hidden": {"hidden_size": n, "head_dim": 8},
        }[cut]
        for n in (kept, kept + (8 if cut == "hidden" else 1))
    }
    shares = [parameters({**config, **size}) / parameters(config) for size in sizes.values()]
    assert shares[0] <= 0.85 < shares[1]
    if cut != "hidden":  # of which almost nothing is left with one channel
        with pytest.raises(StudyError, match="out of reach"):
            kept_of(config, cut, PruningRecipe(cut=cut, target=0.05))


def test_what_cannot_be_cut_is_refused() -> None:
    heads = PruningRecipe(cut="heads", ratio=0.5)
    assert "cannot lose heads" in (refusal(config_of("Phi3").to_dict(), heads) or "")
    assert "could not be loaded" in (refusal(config_of("Olmo2").to_dict(), heads) or "")
    hidden = PruningRecipe(cut="hidden", ratio=0.5)
    assert "cannot be cut in their hidden width" in (refusal(config_of("Phi3").to_dict(), hidden) or "")
    one = config_of("Qwen2", num_key_value_heads=1).to_dict()
    assert "nothing is removed" in (refusal(one, heads) or "")


def test_a_recipe_that_cuts_widths_is_written_as_before() -> None:
    assert not {"cut", "target", "layers", "importance"} & PruningRecipe().model_dump(mode="json").keys()
    assert PruningRecipe(cut="depth").model_dump(mode="json")["cut"] == "depth"


@pytest.mark.parametrize("cut", ["depth", "heads", "hidden"])
def test_the_whole_step(cut: str, tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base", num_hidden_layers=4, **HEADS)
    report = prune(base, tmp_path / "p", cut=cut, ratio=0.5)
    assert {check.name: check.passed for check in report.checks} == dict.fromkeys(Pruning.checks, True)
    json.dumps(report.metadata, allow_nan=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "p")
    assert len(loaded.model.layers) == (2 if cut == "depth" else 4)
    origins = json.loads((tmp_path / "p" / "origins.json").read_text())
    assert len(origins["names"]) == (2 if cut == "depth" else 0)
    assert len(origins["cuts"]) == {"depth": 0, "heads": 16, "hidden": 1}[cut]
    if cut == "hidden":
        assert (loaded.config.hidden_size, loaded.config.head_dim) == (32, 8)


def test_absmax_cannot_be_kept_once_layers_are_gone(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base", num_hidden_layers=4)
    quantize_checkpoint(base, tmp_path / "q", QuantizationRecipe())
    prune(base, tmp_path / "p", cut="depth", ratio=0.5)
    recipe = QuantizationRecipe(keep_absmax=True)
    with pytest.raises(StudyError, match="have been dropped since it was quantized"):
        quantize_checkpoint(tmp_path / "p", tmp_path / "pq", recipe, grid=tmp_path / "q")


@pytest.mark.timeout(400)
def test_a_study_of_depth_and_heads(tmp_path: Path) -> None:
    project = Project(tmp_path)
    raw = project.read()
    raw["base_model"] |= {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
    raw["techniques"] |= {
        "P:depth": {"cut": "depth", "ratio": 0.5},
        "P:heads": {"cut": "heads", "target": 0.9},
        "P:mix": {"cut": "choose", "target": 0.6, "multiple_of": 64},
    }
    raw["orderings"] = ["P:depth-KD-Q", "Q-P:depth-KD", "P:heads", "P:mix-Q"]
    raw["evaluation"] = {"perplexity": {"batch_size": 8}, "diagnostics": {"tokens": 200}}
    project.write(raw)
    code, output = project.compression("run")
    assert code == 0, output
    rows = project.query("SELECT model, layer, update_rms FROM layer_diagnostics")
    compared = [update for model, _, update in rows if model == "q_p_depth_kd"]
    # Compared with other layers an update would be as large as weights are.
    assert len(compared) == 14 and all(0 < update < 0.01 for update in compared), rows
    config = json.loads((project.root / "models" / "p_heads" / "config.json").read_text())
    assert config["num_attention_heads"] == 2 * config["num_key_value_heads"] < 8
    made = json.loads((project.root / "models" / "p_mix" / "manifest.json").read_text())
    assert sum(row["taken"] for row in made["metadata"]["tried"]) == 1
