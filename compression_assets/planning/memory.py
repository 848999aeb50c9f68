"""How many bytes a step needs at its peak, from config.json's shapes alone: known before anything is loaded.

No torch, no files and no devices in here: `plan` shows these figures, the device lease holds them against what is free.
They are estimates on the high side; a step that is a quarter below its estimate is as expected.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compression_assets.techniques.pruning.technique import PruningRecipe, kept_width
from compression_assets.techniques.quantization.technique import QuantizationRecipe
from compression_assets.training.head_loss import BLOCK_BYTES, CHUNK_BYTES
from compression_assets.training.schedule import TrainingRecipe
from compression_assets.training.teacher.teacher_logits import TeacherLogitsRecipe
from compression_assets.weights.formats.format import ModelTensor
from compression_assets.weights.formats.layout import Layout, everywhere, layout_in, stored_parts

MIB = 2**20
LIBRARIES = {"cpu": 900 * MIB, "cuda": 300 * MIB}
"""Before any weight: on a CPU the interpreter with torch, transformers and Dagster (resident, measured), on CUDA the
workspaces of cuBLAS. The context of a CUDA process is not counted: it is there when free memory is asked for."""

SCORED_HEAD_ROWS = 1024
"""Positions whose logits are held at once where perplexity is measured."""


@dataclass(frozen=True)
class Shapes:
    """The sizes of a decoder with gated feed-forward blocks (Llama, Qwen2 and their kin)."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shapes | None":
        """From the content of config.json; None for an architecture that states its sizes under other names."""
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            return cls(
                vocabulary=int(config["vocab_size"]),
                hidden=hidden,
                intermediate=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                tied=bool(config.get("tie_word_embeddings")),
            )
        except KeyError:
            return None

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers: all but the output embedding."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All weights but biases and norms, which are less than a thousandth."""
        return self.linear_parameters + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def tensors(self) -> Iterator[ModelTensor]:
        """Its matrices, under Llama's names."""
        width, kv, head = (
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
            (self.vocabulary, self.hidden),
        )
        yield ModelTensor("model.embed_tokens.weight", head, "embedding")
        if not self.tied:
            yield ModelTensor("lm_head.weight", head, "head")
        matrices = {
            "self_attn.q_proj": (width, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, width),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        for layer in range(self.layers):
            for name, shape in matrices.items():
                yield ModelTensor(f"model.layers.{layer}.{name}.weight", shape, "linear")

    def pruned(self, recipe: PruningRecipe) -> "Shapes":
        """The shapes that P leaves. Raises StudyError when the recipe would remove nothing."""
        width = kept_width(self.intermediate, recipe.ratio, recipe.multiple_of)
        return replace(self, intermediate=width)


def step_memory(
    config: Mapping[str, Any], recipe: Any, *, max_length: int, device: str = "cpu", compute_bytes: int = 2
) -> int | None:
    """Peak bytes of one technique's step, libraries included; None when its memory cannot be told from here.

    config: the parent's config.json. recipe: the step's. max_length: tokens of the longest row that it reads.
    device: "cpu" or "cuda". compute_bytes: of a number that the device computes with (2 for bfloat16).
    """
    shapes = Shapes.of(config)
    if shapes is None:
        return None
    kind = device.partition(":")[0]
    if isinstance(recipe, PruningRecipe):
        tokens = recipe.calibration_batch_size * max_length
        importance = _forward(shapes, tokens, max_length, compute_bytes) + compute_bytes * shapes.parameters
        cutting = 4 * (shapes.parameters + shapes.pruned(recipe).parameters)
        after = training(shapes.pruned(recipe), recipe.finetune, max_length, kind, compute_bytes)
        return LIBRARIES[kind] + max(importance, cutting if kind == "cpu" else 0, after)
    if isinstance(recipe, TrainingRecipe):
        return LIBRARIES[kind] + training(shapes, recipe, max_length, kind, compute_bytes)
    if isinstance(recipe, QuantizationRecipe):
        # On the CPU: the float32 masters that it is compared with, and the file twice (as written, as loaded).
        masters = 4 * shapes.parameters if kind == "cpu" else 0
        after = stored_bytes(shapes, everywhere(recipe.format))
        by_output = _by_output(shapes, after, max_length) if recipe.reads else 0
        return LIBRARIES[kind] + max(masters + 2 * after, by_output)
    if not type(recipe).model_fields:  # D has nothing to choose
        before = stored_bytes(shapes, layout_in(config))
        return LIBRARIES[kind] + (8 * shapes.parameters + before if kind == "cpu" else 0)
    return None


def logits_memory(
    config: Mapping[str, Any],
    recipe: TeacherLogitsRecipe,
    *,
    max_length: int,
    device: str = "cpu",
    compute_bytes: int = 2,
) -> int | None:
    """Peak bytes of running the teacher over the distillation set. config: the teacher's."""
    shapes = Shapes.of(config)
    if shapes is None:
        return None
    kind = device.partition(":")[0]
    weight_bytes = 1 if recipe.load_in_8bit and kind == "cuda" else compute_bytes
    entries = {"dense": 2 * shapes.vocabulary, "hidden": 2 * shapes.hidden}.get(recipe.coding, 8 * recipe.k)
    shard = recipe.rows_per_shard * max_length * entries
    forward = _forward(shapes, recipe.batch_size * max_length, max_length, compute_bytes)
    # Only the CPU holds the shard that is being gathered, twice while it is put in order.
    held = 2 * shard if kind == "cpu" else 0
    encoding = 128 * shapes.vocabulary * 12
    return LIBRARIES[kind] + weight_bytes * shapes.parameters + forward + held + encoding


def scoring_memory(
    config: Mapping[str, Any],
    *,
    batch_size: int,
    max_length: int,
    device: str = "cpu",
    compute_bytes: int = 2,
) -> int | None:
    """Peak bytes of measuring a model's perplexity."""
    shapes = Shapes.of(config)
    if shapes is None:
        return None
    kind = device.partition(":")[0]
    tokens = batch_size * max_length
    # Logits in the compute dtype, in float32, and their log-softmax.
    head = min(SCORED_HEAD_ROWS, tokens) * shapes.vocabulary * (compute_bytes + 8)
    weights = compute_bytes * shapes.parameters
    return LIBRARIES[kind] + weights + _forward(shapes, tokens, max_length, compute_bytes) + head


def training(
    shapes: Shapes, recipe: TrainingRecipe, max_length: int, kind: str = "cpu", compute_bytes: int = 2
) -> int:
    """Bytes of a training run without libraries: weights, masters, gradients, moments, activations and the loss.

    A step holds float32 masters and gradients (8 bytes a parameter), AdamW's two moments (8, or 2 in 8 bits), and the
    weights that it computes with where these are not the masters themselves.
    """
    rows = recipe.batch_size
    # Weights apart from the masters: narrower ones, and those that are rounded as they will be stored.
    apart = compute_bytes < 4 or getattr(recipe, "quantization_aware", False)
    state = (optimizer_bytes(recipe) + (compute_bytes if apart else 0)) * shapes.parameters
    layer = _layer_activations(shapes, rows, max_length, compute_bytes, kind)
    if recipe.gradient_checkpointing:
        activations = layer + shapes.layers * rows * max_length * shapes.hidden * compute_bytes
    else:
        activations = shapes.layers * layer
    return state + activations + _loss(shapes, rows * max_length, kind, compute_bytes)


def optimizer_bytes(recipe: TrainingRecipe) -> int:
    """Bytes a parameter of masters, gradients and moments. Paged moments count as if they stayed on the device."""
    return 16 if recipe.optimizer == "adamw" else 10


def stored_bytes(shapes: Shapes, layout: Layout) -> int:
    """Bytes of a model in the formats of a layout."""
    return sum(part.bytes for _, part in stored_parts(shapes.tensors(), layout))


def _by_output(shapes: Shapes, codes: int, max_length: int) -> int:
    """Bytes of quantizing layer by layer: the model in float32, codes, second moments, the widest of them in float64.

    Hidden states of the calibration set, 8 bytes a token and hidden unit, come on top: its length is not known here.
    """
    width = shapes.heads * shapes.head_dim
    moments = 4 * (5 * shapes.hidden**2 + width**2 + shapes.intermediate**2)
    widest = 8 * 4 * max(shapes.hidden, shapes.intermediate) ** 2
    layer = _forward(shapes, max_length, max_length, 4)
    return 4 * shapes.parameters + codes + moments + widest + layer


def _layer_activations(shapes: Shapes, rows: int, length: int, compute_bytes: int, kind: str) -> int:
    """Bytes that one layer keeps for its backward pass, over rows of `length` tokens."""
    width, kv = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    # Two norms keep their input in float32 and normalised; queries, keys and values before and after rotation; the
    # attention's output; gate, its activation, up, and their product.
    norms = 2 * shapes.hidden * (8 + compute_bytes)
    projections = compute_bytes * (2 * shapes.hidden + 3 * width + 4 * kv + 4 * shapes.intermediate)
    attention = rows * shapes.heads * length * length * compute_bytes if kind == "cpu" else 0
    return rows * length * (norms + projections) + attention


def _forward(shapes: Shapes, tokens: int, length: int, compute_bytes: int) -> int:
    """Bytes of activations of a forward pass that keeps none of them: of one layer at a time."""
    width = max(4 * shapes.hidden + 3 * shapes.heads * shapes.head_dim, 3 * shapes.intermediate)
    probabilities = tokens * length * shapes.heads * (4 + compute_bytes)
    return tokens * (compute_bytes * width + 8 * shapes.hidden) + probabilities


def _loss(shapes: Shapes, tokens: int, kind: str, compute_bytes: int) -> int:
    """Bytes of the chunked output projection: student's and teacher's logits, and their float32 working copies."""
    chunk = min(CHUNK_BYTES, tokens * shapes.vocabulary * compute_bytes)
    working = 5 * BLOCK_BYTES if kind == "cpu" else 5 * (4 // compute_bytes) * chunk
    teacher_head = compute_bytes * shapes.vocabulary * shapes.hidden
    return 2 * chunk + working + teacher_head
