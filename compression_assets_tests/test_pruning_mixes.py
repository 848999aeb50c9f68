"""P that chooses: mixes within a budget, all cuts at once, the lowest loss, refusals; hidden width and head counts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from compression_assets.errors import StudyError
from compression_assets.reporting.making import by_layer
from compression_assets.takeaway.gguf_check import check_in_llama_cpp
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets.techniques.prediction import StepContext
from compression_assets.techniques.pruning import Pruning
from compression_assets.techniques.pruning.amounts import kept_of, unit_count
from compression_assets.techniques.pruning.choice import Choice
from compression_assets.techniques.pruning.mixes import mixes, with_mix
from compression_assets.techniques.pruning.predict import pruned
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.techniques.pruning.refusal import refusal
from compression_assets.techniques.pruning.trials import cut_all, decide
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.weights.shapes import parameters
from compression_assets_tests.architectures import config_of
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer
from compression_assets_tests.test_gguf_out import QWEN, needs_llama_cpp
from compression_assets_tests.test_pruning import prune
from compression_assets_tests.test_pruning_cuts import HEADS, INPUTS, model_of, summed_loss
from compression_assets_tests.tiny_models import tiny_directory, tiny_model

ALL_CUTS = ("width", "depth", "heads", "hidden")
NINE_HEADS = {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 16}


def choosing(target: float = 0.7, **settings: Any) -> PruningRecipe:
    return PruningRecipe(cut="choose", target=target, **settings)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3", "Gemma", "SmolLM3"])
def test_every_mix_is_within_the_target_and_shares_what_goes(name: str) -> None:
    config = config_of(name, num_hidden_layers=8, **HEADS).to_dict()
    found = mixes(config, choosing(0.7, among=ALL_CUTS))
    assert {frozenset(mix) for mix in found} >= {frozenset(("depth",)), frozenset(("depth", "width"))}
    for mix in found:
        assert 0.4 < parameters(with_mix(config, mix)) / parameters(config) <= 0.7
        assert all(0 < kept < unit_count(config, cut) for cut, kept in mix.items())
    alone = {next(iter(mix)): mix for mix in found if len(mix) == 1}
    assert alone["depth"] == {"depth": kept_of(config, "depth", PruningRecipe(cut="depth", target=0.7))}
    both = next(mix for mix in found if set(mix) == {"depth", "width"})
    half = PruningRecipe(cut="depth", target=0.85)
    assert both["depth"] == kept_of(config, "depth", half)


def test_widths_of_every_mix_are_multiples() -> None:
    config = config_of("Qwen3", num_hidden_layers=8, intermediate_size=512, **HEADS).to_dict()
    found = mixes(config, choosing(0.6, among=ALL_CUTS, multiple_of=32))
    assert any("heads" in mix for mix in found)
    for mix in found:
        after = with_mix(config, mix)
        sizes = (
            *(after["hidden_size"], after["intermediate_size"]),
            after["num_key_value_heads"] * after["head_dim"],
        )
        assert all(size % 32 == 0 for size in sizes), mix


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Gemma", "SmolLM3"])
def test_all_cuts_at_once_are_the_original_with_what_goes_at_zero(name: str) -> None:
    model = model_of(name, num_hidden_layers=3, **HEADS)
    generator = torch.Generator().manual_seed(3)

    def some(count: int, of: int) -> torch.Tensor:
        return torch.randperm(of, generator=generator)[:count].sort().values

    groups, neurons = [some(2, 4) for _ in range(3)], [some(80, 128) for _ in range(3)]
    channels = some(48, 64)
    kept = {"depth": [torch.tensor([0, 2])], "heads": groups, "hidden": [channels], "width": neurons}
    choices = {cut: Choice(units, []) for cut, units in kept.items()}
    cut = cut_all(model_of(name, num_hidden_layers=3, **HEADS), choices, model.config.to_dict())
    mix = {"depth": 2, "heads": 2, "hidden": 48, "width": 80}
    assert parameters(with_mix(model.config.to_dict(), mix)) == cut.model.num_parameters()
    assert cut.names["model.layers.1"] == "model.layers.2"
    rows = {layer: removal.kept for removal in cut.cuts for layer in removal.rows_of}
    assert rows["model.layers.1.mlp.up_proj"] == tuple(neurons[2].tolist())

    def silenced(units: torch.Tensor, of: int, size: int = 1) -> torch.Tensor:
        gone = torch.ones(of, dtype=torch.bool)
        gone[units] = False
        return gone.repeat_interleave(size)

    head = model.model.layers[0].self_attn.o_proj.in_features // 8
    lost = silenced(channels, 64)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, lost] = 0
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.weight[:, silenced(groups[index], 4, 2 * head)] = 0
            layer.mlp.down_proj.weight[:, silenced(neurons[index], 128)] = 0
            for writes in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writes.weight[lost] = 0
    model.model.layers[1].forward = lambda hidden_states, **_: hidden_states
    torch.testing.assert_close(cut.model(INPUTS).logits, model(INPUTS).logits, rtol=1e-4, atol=1e-4)


def harmless(directory: Path, cut: str) -> Path:
    """A model that loses nothing with half of its layers, groups or neurons."""
    sizes = {"num_hidden_layers": 4, "intermediate_size": 256, **HEADS}
    model = tiny_model(seed=5, **sizes)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            if cut == "depth" and index in (1, 2):
                attention.o_proj.weight.zero_()
                mlp.down_proj.weight.zero_()
            if cut == "heads":
                for part in (attention.q_proj, attention.k_proj, attention.v_proj):
                    part.weight[part.out_features // 4 :] = 0
                attention.o_proj.weight[:, 16:] = 0
            if cut == "width":
                mlp.gate_proj.weight[64:] = 0
                mlp.down_proj.weight[:, 64:] = 0
        model.model.norm.weight.mul_(8.0)
    tiny_directory(directory, **sizes)
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


def own_words(parent: Path) -> TokenDataset:
    """What a model itself finds likeliest after a few random tokens: whatever changes it makes them less likely."""
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    rows = []
    for seed in range(4):
        ids = torch.randint(0, 256, (1, 4), generator=torch.Generator().manual_seed(seed))
        for _ in range(24):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1)[None]], dim=1)
        rows.append(TokenRow(str(seed), ids[0].tolist(), [False] * 4 + [True] * 24))
    return TokenDataset(rows)


@pytest.mark.parametrize(("cut", "target"), [("depth", 0.6), ("heads", 0.88), ("width", 0.55)])
def test_the_mix_that_hurts_least_is_taken(cut: str, target: float, tmp_path: Path) -> None:
    parent = harmless(tmp_path / "base", cut)
    data = own_words(parent)
    config = json.loads((parent / "config.json").read_text())
    recipe = choosing(target, layers="loss")
    decision = decide(parent, config, mixes(config, recipe), data, recipe, "cpu")
    assert list(decision.mix) == [cut]
    before, *others = decision.tried
    assert before["cut"] == "nothing" and len(others) > 2
    assert min(others, key=lambda row: row["loss"])["taken"] and sum(row["taken"] for row in others) == 1
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.bfloat16).float()
    tokens = sum(row.n_predicted for row in data)
    with torch.no_grad():
        loss = sum(summed_loss(model, row).item() for row in data) / tokens
    assert before["loss"] == pytest.approx(loss, rel=5e-2)
    assert next(row for row in others if row["taken"])["loss"] == pytest.approx(loss, rel=5e-2)


def test_the_whole_step_says_what_it_took_and_why(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base", num_hidden_layers=4, intermediate_size=256, **HEADS)
    report = prune(base, tmp_path / "p", cut="choose", target=0.6, among=ALL_CUTS)
    assert {check.name: check.passed for check in report.checks} == dict.fromkeys(Pruning.checks, True)
    json.dumps(report.metadata, allow_nan=False)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "p")
    before = AutoModelForCausalLM.from_pretrained(base).num_parameters()
    assert loaded.num_parameters() <= 0.6 * before
    (taken,) = [row for row in report.metadata["tried"] if row["taken"]]
    assert taken["parameters"] == loaded.num_parameters()
    assert f"took {taken['cut']}" in report.metadata["summary"]
    columns = [set(row) for row in report.metadata["layers"]]
    assert all(found == columns[0] for found in columns)
    by_layer(report.metadata["layers"], "importance_removed")


def test_a_plan_is_no_less_than_any_mix() -> None:
    config = config_of("Llama", num_hidden_layers=8, **HEADS).to_dict()
    recipe, context = choosing(0.7), StepContext(max_length=128)
    after, predicted = pruned(config, recipe), Pruning.predict(config, recipe, context)
    for mix in mixes(config, recipe):
        assert parameters(with_mix(config, mix)) <= parameters(after) <= 0.7 * parameters(config)
        assert predicted.config == after
    alone = PruningRecipe(cut="depth", target=0.7)
    one = Pruning.predict(config, alone, context)
    assert predicted.memory is not None and one.memory is not None and predicted.memory >= one.memory


def test_what_cannot_be_chosen_from_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs a target"):
        PruningRecipe(cut="choose")
    with pytest.raises(ValidationError, match="two or more different"):
        choosing(among=("width", "width"))
    with pytest.raises(ValidationError, match="among is for cut: choose only"):
        PruningRecipe(among=("width", "depth"))
    phi = config_of("Phi3", num_hidden_layers=4).to_dict()
    assert re.search("cannot lose heads.*leave heads out of among", refusal(phi, choosing()) or "")
    assert refusal(phi, choosing(among=("width", "depth"))) is None
    assert "use another cut" in (refusal(phi, choosing(among=ALL_CUTS)) or "")
    assert "out of reach for every combination" in (refusal(phi, choosing(0.01)) or "")
    assert "mixtures of experts" in (refusal(config_of("Mixtral").to_dict(), choosing()) or "")


def test_a_recipe_that_does_not_choose_is_written_as_before() -> None:
    assert "among" not in PruningRecipe(cut="depth").model_dump(mode="json")


@pytest.mark.parametrize("name", ["Llama", "Gemma3Text"])
def test_hidden_width_stays_a_multiple_of_heads_where_transformers_wants_it(name: str) -> None:
    config = config_of(name, **NINE_HEADS).to_dict()
    for recipe in (PruningRecipe(cut="hidden", ratio=0.3), PruningRecipe(cut="hidden", target=0.7)):
        assert refusal(config, recipe) is None
        assert 0 < kept_of(config, "hidden", recipe) < 144 and kept_of(config, "hidden", recipe) % 9 == 0
    far = PruningRecipe(cut="hidden", ratio=0.3, multiple_of=64)
    assert "that the 9 heads of such a model divide" in (refusal(config, far) or "")
    with pytest.raises(StudyError, match="that the 9 heads of such a model divide"):
        kept_of(config, "hidden", PruningRecipe(cut="hidden", target=0.5, multiple_of=64))
    # Six heads divide what nine do not.
    both = choosing(0.7, among=("heads", "hidden"), multiple_of=32)
    assert {"heads": 2, "hidden": 96} in mixes({**config, "intermediate_size": 64}, both)


def test_heads_of_a_target_divide_the_hidden_width_where_transformers_wants_it() -> None:
    config = config_of("Llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=8).to_dict()
    recipe = PruningRecipe(cut="heads", target=0.95)
    assert kept_of(config, "heads", recipe) in (2, 4) and refusal(config, recipe) is None


@needs_llama_cpp
def test_llama_cpp_predicts_the_same_of_what_is_cut_in_all_directions(tmp_path: Path) -> None:
    base = tiny_directory(
        tmp_path / "base", num_hidden_layers=4, vocab_size=720, intermediate_size=256, **NINE_HEADS
    )
    put_tokenizer(base, byte_level_tokenizer(QWEN))
    prune(base, tmp_path / "p", cut="hidden", target=0.7)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "p")
    assert loaded.config.hidden_size < 144 and loaded.config.head_dim == 16
    write_gguf(tmp_path / "p", tmp_path / "model.gguf", "tiny", "a test")
    said = check_in_llama_cpp(tmp_path / "p", tmp_path / "model.gguf", list(range(200)))
    assert "predicts the same" in said
