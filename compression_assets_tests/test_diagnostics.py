"""A Q after training compared with the grid before it: what matches over pruning, and what it is compared with."""

from pathlib import Path

import pytest
import torch

from compression_assets.evaluation.diagnostics import compare, rows_of
from compression_assets.study.diagnosed import compared_with, diagnosed, follows_training
from compression_assets.study.files import load_study
from compression_assets.techniques.dequantization.apply import dequantize_checkpoint
from compression_assets.techniques.pruning.blocks import prune_ffn
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.weights import checkpoints
from compression_assets.weights.formats import nf4
from compression_assets.weights.origins import FILE, Cut, write_origins
from compression_assets_tests.tiny_models import tiny_directory

KEEP = [torch.arange(0, 128, 2), torch.arange(64, 128)]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """base, q and d; moved: d with updates of 1e-4; pruned: the same without half of the neurons; q_ of both."""
    base = tiny_directory(tmp_path / "base", hidden_size=64)
    quantize_checkpoint(base, tmp_path / "q", QuantizationRecipe())
    dequantize_checkpoint(tmp_path / "q", tmp_path / "d")
    for name in ("pruned", "moved"):
        model = checkpoints.load_full_precision(tmp_path / "d")
        if name == "pruned":
            prune_ffn(model, KEEP)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-4 * torch.randn(parameter.shape, generator=generator)
        checkpoints.save_full_precision(model, tmp_path / name, tokenizer_from=base, masters=True)
        quantize_checkpoint(tmp_path / name, tmp_path / f"q_{name}", QuantizationRecipe())
    cuts = [
        Cut(
            tuple(keep.tolist()),
            rows_of=(f"model.layers.{i}.mlp.gate_proj", f"model.layers.{i}.mlp.up_proj"),
            columns_of=(f"model.layers.{i}.mlp.down_proj",),
        )
        for i, keep in enumerate(KEEP)
    ]
    write_origins(tmp_path / "pruned", cuts=cuts)
    return tmp_path


def test_small_updates_are_undone_on_the_grid_and_nowhere_else(made: Path) -> None:
    on = compare(made / "d", made / "q", [made / "moved"], made / "q_moved")
    assert len(on.layers) == 14 and not on.left_out
    for survival in on.layers.values():
        assert survival.codes_changed == 0
        assert survival.surviving is not None and survival.surviving < 0.05
        assert survival.update_rms == pytest.approx(1e-4, rel=0.1)
    never = compare(made / "base", None, [made / "moved"], made / "q_moved")
    assert all(survival.predicted is None for survival in never.layers.values())


def test_over_pruning_whole_rows_are_matched_and_shifted_blocks_left_out(made: Path) -> None:
    found = compare(made / "d", made / "q", [made / "pruned"], made / "q_pruned")
    assert set(found.left_out) == {f"model.layers.{i}.mlp.down_proj" for i in range(2)}
    gate = found.layers["model.layers.0.mlp.gate_proj"]
    # Were the rows mismatched, the update would be as large as the weights (0.1).
    assert gate.update_rms == pytest.approx(1e-4, rel=0.1)
    assert gate.codes_changed == 0
    assert gate.weights == len(KEEP[0]) * 64
    assert len(found.layers) == 12


@pytest.fixture
def dropped(tmp_path: Path) -> Path:
    """base of four layers; short: its layers 0 and 3 with updates of 1e-4, which says nothing; q_short."""
    base = tiny_directory(tmp_path / "base", hidden_size=64, num_hidden_layers=4)
    model = checkpoints.load_full_precision(base)
    model.model.layers = torch.nn.ModuleList([model.model.layers[0], model.model.layers[3]])
    model.config.num_hidden_layers = 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    checkpoints.save_full_precision(model, tmp_path / "short", tokenizer_from=base, masters=True)
    quantize_checkpoint(tmp_path / "short", tmp_path / "q_short", QuantizationRecipe())
    return tmp_path


def test_over_dropped_layers_each_is_compared_with_what_it_was(dropped: Path) -> None:
    write_origins(dropped / "short", names={"model.layers.1": "model.layers.3"})
    found = compare(dropped / "base", None, [dropped / "short"], dropped / "q_short")
    assert len(found.layers) == 14 and not found.left_out
    for survival in found.layers.values():
        assert survival.update_rms == pytest.approx(1e-4, rel=0.1)


def test_over_dropped_layers_nothing_is_compared_where_the_step_is_silent(dropped: Path) -> None:
    found = compare(dropped / "base", None, [dropped / "short"], dropped / "q_short")
    assert not found.layers and len(found.left_out) == 14
    assert set(found.left_out.values()) == {
        "short has other layers than the model before it, and names no origins"
    }


def test_a_cut_that_nobody_explains_is_not_compared(made: Path) -> None:
    (made / "pruned" / FILE).unlink()
    found = compare(made / "d", made / "q", [made / "pruned"], made / "q_pruned")
    assert len(found.layers) == 8
    assert {layer.rpartition(".")[2] for layer in found.left_out} == {"gate_proj", "up_proj", "down_proj"}
    assert all("no cut that explains it" in reason for reason in found.left_out.values())


def test_parts_of_some_rows_decode_to_those_rows() -> None:
    stored = nf4.quantize(torch.randn(8, 128, generator=torch.Generator().manual_seed(0)))
    rows = torch.tensor([5, 0, 7])
    assert torch.equal(nf4.dequantize(rows_of(stored, rows)), nf4.dequantize(stored)[rows])


def test_what_each_q_is_compared_with() -> None:
    study = load_study("smoke")
    nodes = {node.key: node for node in study.nodes.values()}
    assert not follows_training(study, nodes["q"])
    assert compared_with(nodes["q_p_kd"]) == (("Q", "D"), ("Q",), [("Q", "D", "P"), ("Q", "D", "P", "KD")])
    assert compared_with(nodes["p_q_kd"]) == (("P", "Q", "D"), ("P", "Q"), [("P", "Q", "D", "KD")])
    assert compared_with(nodes["kd_p_q"]) == (("KD",), None, [("KD", "P")])
    assert compared_with(nodes["kd_q"]) == ((), None, [("KD",)])
    keys = {node.key for node in diagnosed(study)}
    assert {"q_d_p", "kd_q", "p_kd_q"} <= keys
    assert not keys & {"base", "q", "q_d", "kd"}
