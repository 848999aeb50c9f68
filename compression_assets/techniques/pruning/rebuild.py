"""A model of another config.json around some of a model's tensors, built as transformers will build it from files."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError
from compression_assets.weights import checkpoints
from compression_assets.weights.architectures import Config, as_transformers
from compression_assets.weights.origins import Cut, Origins

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def rebuilt(
    model: "PreTrainedModel", config: Config, names: Mapping[str, str], cuts: Sequence[Cut]
) -> "PreTrainedModel":
    """The model of `config` whose layers are what `names` and `cuts` say of the old ones: see `weights.origins`.

    Raises StudyError as `tensors_for`.
    """
    made, dtype = as_transformers(config), model.dtype
    state = tensors_for(model, config, names, cuts)
    with checkpoints.quiet():
        new: PreTrainedModel = type(model).from_pretrained(None, config=made, state_dict=state, dtype=dtype)
    new.generation_config = model.generation_config
    return new


def tensors_for(
    model: "PreTrainedModel", config: Config, names: Mapping[str, str], cuts: Sequence[Cut]
) -> "dict[str, torch.Tensor]":
    """The tensors of the new model; those of a meta model will do.

    Raises StudyError where transformers reads no such config, or where a model of it has tensors of other shapes.
    """
    import torch

    old = checkpoints.stored_tensors(model)
    origins = Origins(
        names,
        {layer: cut.kept for cut in cuts for layer in cut.rows_of},
        {layer: cut.kept for cut in cuts for layer in cut.columns_of},
    )
    made = {}
    for name, slot in checkpoints.stored_tensors(checkpoints.empty_model(as_transformers(config))).items():
        layer = name.rpartition(".")[0]
        tensor = old.get(origins.name(name))
        for dim, kept in ((0, origins.rows.get(layer)), (1, origins.columns.get(layer))):
            if tensor is not None and kept is not None and dim < tensor.ndim:
                tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
        if tensor is None or tensor.shape != slot.shape:
            raise StudyError(
                f"models of type {model.config.model_type!r} cannot be cut so: config.json cannot say what {name} "
                "would be, so that the result could not be loaded; use cut: width"
            )
        made[name] = tensor
    return made
