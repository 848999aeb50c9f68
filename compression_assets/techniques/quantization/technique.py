"""NF4 quantization of a model directory with bitsandbytes. The number format itself is in nf4.py."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compression_assets.errors import StudyError
from compression_assets.store.reports import Check, Report, StepReport, no_report
from compression_assets.strict import Strict
from compression_assets.techniques.quantization import calibrated
from compression_assets.techniques.quantization.rounding import Rounding, clipping, quantize
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints, int8, nf4
from compression_assets.weights import quantized as quantized_weights
from compression_assets.weights.architectures import uncovered_share_of
from compression_assets.weights.files import read_tensors, write_weights
from compression_assets.weights.first_answer import answer_or_reason

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MAX_RELATIVE_ERROR = 0.15
# Normally distributed weights come out at 0.09, 0.12 and 0.01.
MAX_RELATIVE_ERRORS = {"nf4": MAX_RELATIVE_ERROR, "fp4": 0.2, "int8": 0.05}
# Uniformly spread over its bin of width d, a weight is d / sqrt(12) off the nearest value in the root mean square and
# d / sqrt(6) off one that is drawn.
# What gptq rounds away in one weight it makes up for in others, which move further: measured 0.13 on average, to 0.18.
# Its measure is the output, which has to be no worse than by nearest rounding.
MAX_ERROR_OF_ROUNDING = {"stochastic": 0.15 * 2**0.5, "gptq": 0.5}
CALIBRATION_SET = "calibration_set"
MAX_UNCOVERED = 0.05
"""Share of a model's matrices, embeddings and output layer aside, that Q may leave as they are without a word."""


class QuantizationRecipe(Strict):
    """How linear layers are stored. Defaults: the authors' scripts (NF4, block 64, double quantization).

    kind: nf4; fp4, as large with other values; int8 (LLM.int8, threshold 6.0), to which blocks and absmax do not apply.
    blocksize: weights that share one absmax; transformers makes no other. double_quant: absmax itself is
        stored in 8 bits.
    compute_dtype: dtype in which the quantized layers multiply, as recorded in config.json.
    rounding: how a weight becomes a code. nearest: bitsandbytes' own; stochastic: one of the two around it, with
        chances such that the mean over seeds is the weight (up to those beyond the stored absmax); gptq: such that the
        outputs of every layer on the calibration set change least.
    keep_absmax: take over the absmax of the last Q before this one in the ordering, in layers whose shape is the same.
    answer_tokens: tokens that the written model generates before it counts as made.
    accept_uncovered: also quantize a model of which more than a twentieth stays in 16 bit, embeddings and output layer
        aside: matrices that are no linear layers, such as experts.
    """

    kind: Literal["nf4", "fp4", "int8"] = "nf4"
    blocksize: Literal[64] = 64
    double_quant: bool = True
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    rounding: Literal["nearest", "stochastic", "gptq"] = "nearest"
    keep_absmax: bool = False
    answer_tokens: int = Field(default=8, ge=1)
    accept_uncovered: bool = False

    @model_validator(mode="after")
    def _rounding_fits_the_kind(self) -> Self:
        if self.kind != "nf4" and (self.rounding != "nearest" or self.keep_absmax):
            raise ValueError(f"rounding and keep_absmax can be chosen for nf4 only, not for {self.kind}")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        """Data assets that this recipe needs."""
        return (CALIBRATION_SET,) if self.rounding == "gptq" else ()


class Quantization:
    """Q: stores every linear layer but the output embedding in NF4."""

    name: ClassVar[str] = "Q"
    title: ClassVar[str] = "NF4 quantization"
    Recipe: ClassVar[type[Any]] = QuantizationRecipe
    needs_full_precision: ClassVar[bool] = True
    quantizes: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ()
    checks: ClassVar[tuple[str, ...]] = ("weights_finite", "size_as_asked", "dequantization_error")

    @staticmethod
    def apply(step: StepInputs) -> StepReport:
        """Quantize `step.parent` into `step.output`; see `quantize_checkpoint`."""
        return quantize_checkpoint(
            step.parent,
            step.output,
            step.recipe,
            step.device,
            step.report,
            seed=f"{step.seed} {'-'.join(step.path)}",
            grid=step.last_quantized,
            calibration=TokenDataset.load(step.data[CALIBRATION_SET]) if step.recipe.reads else None,
        )


def quantize_checkpoint(
    source: Path,
    target: Path,
    recipe: QuantizationRecipe,
    device: str = "cpu",
    report: Report = no_report,
    *,
    seed: str = "",
    grid: Path | None = None,
    calibration: TokenDataset | None = None,
) -> StepReport:
    """Write the NF4 checkpoint that transformers and bitsandbytes would write, one tensor at a time.

    seed: of stochastic rounding. grid: NF4 directory whose absmax the recipe keeps. calibration: what gptq looks at.

    Codes come from the fp32 masters when the source has them, else from its published weights. Embeddings,
    norms, biases and the output embedding stay in bf16. Metadata: "layers" with each layer's relative
    Frobenius error read back from the written file (and, where absmax is not the weight's own maximum or rounding is
    meant to be unbiased, what lies beyond absmax; with gptq, each layer's relative output error on the calibration set
    beside that of nearest rounding); "answers_on" with the kinds of device it runs on.
    Raises StudyError when the source is quantized, damaged, or has no linear layers, when there is no grid to keep, or
    when gptq has no calibration set or does not know the model's layers.
    """
    checkpoints.refuse_quantized(source)
    config = checkpoints.read_config(source)
    model = checkpoints.empty_model(config)
    layers = nf4.linear_layers(model)
    uncovered = uncovered_share_of(model)
    if reason := too_much_uncovered(config.model_type, uncovered, recipe):
        raise StudyError(f"{source}: {reason}")
    kept = _kept_grid(recipe, source, grid, model)
    rounding = Rounding(recipe.rounding, recipe.double_quant, seed)
    by_output = calibrated.ByOutput()
    if recipe.rounding == "gptq":
        by_output = calibrated.quantize_by_output(
            source, calibration, recipe.double_quant, kept, device, report
        )
    weights = _quantized_tensors(
        source, model, set(layers), recipe.kind, rounding, kept, by_output.parts, device, report
    )
    write_weights(dict(weights), target)
    _write_config(source, target, recipe)
    checkpoints.copy_generation_config(source, target)
    checkpoints.copy_tokenizer(source, target)

    errors = relative_errors(source, target)
    for layer, error in by_output.errors.items():
        errors[layer] |= error
    means = {
        f"{name}_mean": fmean(error[name] for error in errors.values())
        for name in next(iter(errors.values()))
    }
    answers = answer_or_reason(target, model, device, recipe.answer_tokens)
    return StepReport(
        checks=(
            checkpoints.check_finite(target),
            checkpoints.check_size(target),
            _check_errors(recipe, errors, means),
        ),
        metadata={
            "layers": [{"layer": layer, **error} for layer, error in errors.items()],
            **means,
            "relative_error_max": max(error["relative_error"] for error in errors.values()),
            "covered_share": 1.0 - uncovered,
            "layers_with_kept_absmax": sum(f"{layer}.weight" in kept for layer in layers),
            "tensor_bytes": checkpoints.tensor_bytes(target),
            **answers,
        },
    )


def too_much_uncovered(kind: str, uncovered: float, recipe: QuantizationRecipe) -> str | None:
    """Why a model of a type, of which a share is left uncovered, is not quantized; None if it is."""
    if uncovered == 1.0:
        return f"models of type {kind!r} have no linear layers that quantization covers: leave Q out of the orderings"
    if uncovered <= MAX_UNCOVERED or recipe.accept_uncovered:
        return None
    return (
        f"of models of type {kind!r} Q would leave {uncovered:.0%} of the weights in 16 bit (embeddings and output "
        "layer aside), because they are no linear layers: use another model, or write Q: {accept_uncovered: true}"
    )


def _check_errors(
    recipe: QuantizationRecipe, errors: dict[str, dict[str, float]], means: dict[str, float]
) -> Check:
    """Every weight within the limit of its rounding; by layer output, outputs no worse than nearest rounding's."""
    limit = MAX_ERROR_OF_ROUNDING.get(recipe.rounding, MAX_RELATIVE_ERRORS[recipe.kind])
    worst = max(errors, key=lambda layer: errors[layer]["relative_error"])
    largest = errors[worst]["relative_error"]
    passed = largest < limit
    detail = (
        f"relative error {means['relative_error_mean']:.4f} on average, at most {largest:.4f} ({worst}), "
        f"limit {limit}"
    )
    if "output_error_mean" in means:
        passed &= means["output_error_mean"] <= means["output_error_of_nearest_mean"]
        detail += (
            f"; error of layer outputs {means['output_error_mean']:.4f} on average, by nearest rounding "
            f"{means['output_error_of_nearest_mean']:.4f}"
        )
    return Check("dequantization_error", passed, detail)


def relative_errors(full_precision: Path, quantized: Path) -> dict[str, dict[str, float]]:
    """Layer -> errors of a written NF4 directory against what it was made from.

    relative_error: ||W - Ŵ|| / ||W|| (Frobenius). clipped_share, clipping_bias: see `rounding.clipping`.
    """
    originals = dict(read_tensors(checkpoints.masters_or_published(full_precision)))
    errors = {}
    for name, stored in quantized_weights.read_nf4(quantized):
        if isinstance(stored, dict):
            weight = originals[name].float()
            # A layer of zeros is stored exactly; its error is 0, not 0 / 0.
            norm = weight.norm().item() or 1.0
            share, bias = (0.0, 0.0) if int8.is_int8(stored) else clipping(weight, stored)
            errors[name.removesuffix(".weight")] = {
                "relative_error": (quantized_weights.dequantized(stored) - weight).norm().item() / norm,
                "clipped_share": share,
                "clipping_bias": bias,
            }
    return errors


def _quantized_tensors(
    source: Path,
    model: "PreTrainedModel",
    layers: set[str],
    kind: str,
    rounding: Rounding,
    grid: "Mapping[str, nf4.Stored]",
    by_output: "Mapping[str, nf4.Stored]",
    device: str,
    report: Report,
) -> "Iterator[tuple[str, torch.Tensor]]":
    done, directory = 0, checkpoints.masters_or_published(source)
    for name, tensor in checkpoints.fitting(directory, read_tensors(directory), model):
        if name.removesuffix(".weight") not in layers or not name.endswith(".weight"):
            yield name, checkpoints.published(tensor)
            continue
        if not tensor.isfinite().all():
            raise StudyError(f"{name} in {source} is not finite; build this model again")
        stored = by_output.get(name) or _stored(tensor.to(device), kind, rounding, name, grid.get(name))
        yield from ((quantized_weights.part_name(name, suffix), part) for suffix, part in stored.items())
        done += 1
        report(done, len(layers), "layers quantized")


def _stored(
    weight: "torch.Tensor", kind: str, rounding: Rounding, name: str, grid: "nf4.Stored | None"
) -> "nf4.Stored":
    if kind == "nf4":
        return quantize(weight, rounding, name, grid)
    return int8.quantize(weight) if kind == "int8" else nf4.quantize(weight, rounding.double_quant, kind)


def _kept_grid(
    recipe: QuantizationRecipe, source: Path, grid: Path | None, model: "PreTrainedModel"
) -> "dict[str, nf4.Stored]":
    """Weight name -> earlier parts whose absmax is taken over: none for a weight that pruning has cut since."""
    if not recipe.keep_absmax:
        return {}
    if grid is None:
        raise StudyError(
            f"keep_absmax: there is no quantization before {source}; leave it out of this Q's recipe"
        )
    shapes = {name: tensor.shape for name, tensor in checkpoints.stored_tensors(model).items()}
    return {
        name: stored
        for name, stored in quantized_weights.read_nf4(grid)
        if isinstance(stored, dict) and nf4.shape_of(stored) == shapes[name]
    }


def _write_config(source: Path, target: Path, recipe: QuantizationRecipe) -> None:
    import torch
    from transformers import BitsAndBytesConfig

    config = checkpoints.read_config(source)
    config.dtype = torch.bfloat16
    config.quantization_config = (
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
        if recipe.kind == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=recipe.kind,
            bnb_4bit_use_double_quant=recipe.double_quant,
            bnb_4bit_compute_dtype=recipe.compute_dtype,
        )
    )
    config.save_pretrained(target)
