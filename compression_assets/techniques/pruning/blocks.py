"""Feed-forward blocks of a model: where they are, how wide, and how neurons are cut out of them.

A neuron is a row of every matrix that makes it (gate and up, or the first of two plain ones) and a column of the
matrix that reads it. Fused gate_up_proj holds the gates' rows above the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PretrainedConfig, PreTrainedModel

LAYOUTS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("up_proj",), "down_proj"),
    (("c_fc",), "c_proj"),
    (("fc_in",), "fc_out"),
    (("fc1",), "fc2"),
)
"""(Layers whose rows make neurons, the layer whose columns read them), as transformers names them."""
FUSED = "gate_up_proj"
WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
"""Keys under which a config may state the width."""


@dataclass(frozen=True)
class FeedForward:
    """One block. module: what holds its layers. made_by and read_by: names of those layers."""

    module: "Module"
    made_by: tuple[str, ...]
    read_by: str

    @property
    def making(self) -> list[Any]:
        return [getattr(self.module, name) for name in self.made_by]

    @property
    def reading(self) -> Any:
        return getattr(self.module, self.read_by)

    @property
    def width(self) -> int:
        """Neurons."""
        return _shape(self.reading)[1]

    def gate(self, output: "torch.Tensor") -> "torch.Tensor":
        """What the first layer's output [..., rows] says of the neurons before their non-linearity: [..., width]."""
        return output[..., : self.width]

    def weight_magnitude(self) -> "torch.Tensor":
        """Sum of |weight| over the rows that make a neuron, fp64 [width] on the CPU."""
        sums = [
            _matrix(layer).detach().double().abs().sum(1).view(-1, self.width).sum(0) for layer in self.making
        ]
        total = sums[0]
        for other in sums[1:]:
            total = total + other
        return total.cpu()

    def keep(self, kept: "torch.Tensor") -> None:
        """Cut the block, in place, to the neurons `kept` (int64 [n]), in that order."""
        width = self.width
        for name, layer in zip(self.made_by, self.making, strict=True):
            _select(layer, rows_making(name, kept, width), dim=0)
        _select(self.reading, kept, dim=1)
        for attribute in WIDTHS:
            if hasattr(self.module, attribute):
                setattr(self.module, attribute, len(kept))


def rows_making(layer: str, kept: "torch.Tensor", width: int) -> "torch.Tensor":
    """Rows of a layer that make the neurons `kept` of `width`: in fused gate_up_proj each has two."""
    import torch

    return torch.cat([kept, kept + width]) if layer == FUSED else kept


def ffn_blocks(model: "PreTrainedModel") -> list[FeedForward]:
    """The feed-forward block of every layer, in order; a meta model will do.

    Raises StudyError unless each layer has one, all of one width, which config.json can state.
    """
    kind, layers = model.config.model_type, model.config.num_hidden_layers
    blocks = [block for module in model.modules() if (block := _block(module))]
    if len(blocks) != layers:
        raise StudyError(
            f"models of type {kind!r} cannot be pruned: not every layer has one feed-forward block of gate_proj, "
            f"up_proj and down_proj, of gate_up_proj and down_proj, or of two plain matrices ({len(blocks)} found in "
            f"{layers} layers)"
        )
    if len({block.width for block in blocks}) > 1:
        raise StudyError(
            f"models of type {kind!r} whose feed-forward widths differ by layer cannot be pruned"
        )
    return blocks


def width_key(config: "PretrainedConfig") -> str:
    """The key of a config that decides how wide its feed-forward blocks are, found by trying.

    Raises StudyError where none does: a pruned model could not be loaded.
    """
    import copy

    from compression_assets.weights.checkpoints import empty_model

    for key in WIDTHS:
        if not hasattr(config, key):
            continue
        narrower = copy.deepcopy(config)
        narrower.num_hidden_layers = 1
        setattr(narrower, key, 8)
        if {block.width for block in ffn_blocks(empty_model(narrower))} == {8}:
            return key
    raise StudyError(
        f"models of type {config.model_type!r} cannot be pruned: config.json has no key for the width of their "
        "feed-forward blocks, so that a pruned one could not be loaded"
    )


def prune_ffn(model: "PreTrainedModel", keep: "Sequence[torch.Tensor]") -> None:
    """Cut every feed-forward block, in place, to the neurons `keep[layer]` (int64 [n], one n for all).

    Updates the config's width. Neurons stay in the order of `keep`; biases are handled.
    """
    (width,) = {len(kept) for kept in keep}
    key = width_key(model.config)
    for block, kept in zip(ffn_blocks(model), keep, strict=True):
        block.keep(kept)
    setattr(model.config, key, width)


def _block(module: "Module") -> FeedForward | None:
    for made_by, read_by in LAYOUTS:
        layers = [getattr(module, name, None) for name in (*made_by, read_by)]
        if not all(_is_linear(layer) for layer in layers):
            continue
        *making, (_, width) = [_shape(layer) for layer in layers]
        if all(rows == width * (2 if made_by == (FUSED,) else 1) for rows, _ in making):
            return FeedForward(module, made_by, read_by)
    return None


def _is_linear(layer: Any) -> bool:
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Linear | Conv1D)


def _is_transposed(layer: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def _matrix(layer: Any) -> "torch.Tensor":
    """The weight as [out, in]: GPT-2's Conv1D stores it the other way round."""
    return layer.weight.T if _is_transposed(layer) else layer.weight


def _shape(layer: Any) -> tuple[int, int]:
    out_features, in_features = _matrix(layer).shape
    return out_features, in_features


def _select(layer: Any, kept: "torch.Tensor", dim: int) -> None:
    """Keep rows (dim 0) or columns (dim 1) of a layer's [out, in]; the bias belongs to the rows."""
    from torch.nn import Parameter

    kept = kept.to(layer.weight.device)
    stored = 1 - dim if _is_transposed(layer) else dim
    layer.weight = Parameter(layer.weight.detach().index_select(stored, kept))
    if dim == 0 and layer.bias is not None:
        layer.bias = Parameter(layer.bias.detach().index_select(0, kept))
    if _is_transposed(layer):
        layer.nx, layer.nf = layer.weight.shape
    else:
        layer.out_features, layer.in_features = layer.weight.shape
