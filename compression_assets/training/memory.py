"""How many bytes forward passes and training need at their peak, from config.json's shapes alone.

They are estimates on the high side; a step that is a quarter below its estimate is as expected.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from compression_assets.training.head_loss import BLOCK_BYTES, CHUNK_BYTES
from compression_assets.training.schedule import TrainingRecipe
from compression_assets.weights.formats.format import ModelTensor
from compression_assets.weights.formats.layout import layout_in, stored_parts

MIB = 2**20
LIBRARIES = {"cpu": 900 * MIB, "cuda": 300 * MIB}
"""Before any weight: on a CPU the interpreter with torch, transformers and Dagster (resident, measured), on CUDA the
workspaces of cuBLAS. The context of a CUDA process is not counted: it is there when free memory is asked for."""


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


def training_memory(
    shapes: Shapes,
    recipe: TrainingRecipe,
    rows: int,
    max_length: int,
    kind: str = "cpu",
    compute_bytes: int = 2,
    rounded: bool = False,
    gpus: int = 1,
    teacher_hidden: int = 0,
) -> int:
    """Bytes of a training run without libraries: weights, masters, gradients, moments, activations and the loss.

    A step holds float32 masters and gradients (8 bytes a parameter), AdamW's two moments (8, or 2 in 8 bits), and the
    weights that it computes with where these are not the masters themselves: narrower ones, and those that are
    `rounded` as they will be stored. rows: in a forward pass. gpus: that share it; the bytes are those of one.
    teacher_hidden: width of the teacher whose output layer is there, 0 without one.
    """
    apart = compute_bytes < 4 or rounded
    if gpus == 1:
        state = (optimizer_bytes(recipe) + (compute_bytes if apart else 0)) * shapes.parameters
    else:
        state = optimizer_bytes(recipe) * shapes.parameters // gpus + _gathered(shapes, compute_bytes)
    layer = _layer_activations(shapes, rows, max_length, compute_bytes, kind)
    if recipe.gradient_checkpointing:
        activations = layer + shapes.layers * rows * max_length * shapes.hidden * compute_bytes
    else:
        activations = shapes.layers * layer
    if kind == "cuda" and gpus == 1 and recipe.gradient_accumulation == 1:
        # Of a step in one pass, gradients come as activations go. A CPU's allocator does not give back as exactly.
        activations = max(layer, activations - 4 * shapes.parameters)
    return state + activations + _loss(shapes, rows * max_length, kind, compute_bytes, teacher_hidden)


def _gathered(shapes: Shapes, compute_bytes: int) -> int:
    """Bytes of the weights that a GPU of several holds whole at once, and of their gradients before they are shared.

    Of embedding and output layer from the forward to the backward pass, of two decoder layers in turn. A gradient is
    there in the compute format and, on its way to the others, in float32.
    """
    embeddings = shapes.vocabulary * shapes.hidden * (1 if shapes.tied else 2)
    layers = 2 * shapes.linear_parameters // shapes.layers
    return (embeddings + layers) * (2 * compute_bytes + 4)


def optimizer_bytes(recipe: TrainingRecipe) -> int:
    """Bytes a parameter of masters, gradients and moments. Paged moments count as if they stayed on the device."""
    return 16 if recipe.optimizer == "adamw" else 10


def stored_bytes(shapes: Shapes, config: Mapping[str, Any]) -> int:
    """Bytes of a model's matrices in the number formats that a config.json's content describes."""
    return _stored_bytes(shapes, json.dumps(config.get("quantization_config") or {}))


@lru_cache
def _stored_bytes(shapes: Shapes, quantization: str) -> int:
    layout = layout_in({"quantization_config": json.loads(quantization)})
    return sum(part.bytes for _, part in stored_parts(shapes.tensors(), layout))


def _layer_activations(shapes: Shapes, rows: int, length: int, compute_bytes: int, kind: str) -> int:
    """Bytes that one layer keeps for its backward pass, over rows of `length` tokens."""
    width, kv = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    # Two norms keep their input in float32 and normalised; queries, keys and values before and after rotation; the
    # attention's output; gate, its activation, up, and their product.
    norms = 2 * shapes.hidden * (8 + compute_bytes)
    projections = compute_bytes * (2 * shapes.hidden + 3 * width + 4 * kv + 4 * shapes.intermediate)
    attention = rows * shapes.heads * length * length * compute_bytes if kind == "cpu" else 0
    return rows * length * (norms + projections) + attention


def forward_memory(shapes: Shapes, tokens: int, length: int, compute_bytes: int) -> int:
    """Bytes of activations of a forward pass that keeps none of them: of one layer at a time."""
    width = max(4 * shapes.hidden + 3 * shapes.heads * shapes.head_dim, 3 * shapes.intermediate)
    probabilities = tokens * length * shapes.heads * (4 + compute_bytes)
    return tokens * (compute_bytes * width + 8 * shapes.hidden) + probabilities


def _loss(shapes: Shapes, tokens: int, kind: str, compute_bytes: int, teacher_hidden: int) -> int:
    """Bytes of the chunked output projection: student's and teacher's logits, and their float32 working copies."""
    chunk = min(CHUNK_BYTES[kind], tokens * shapes.vocabulary * compute_bytes)
    working = 5 * BLOCK_BYTES if kind == "cpu" else 5 * (4 // compute_bytes) * chunk
    teacher_head = compute_bytes * shapes.vocabulary * teacher_hidden
    return 2 * chunk + working + teacher_head
