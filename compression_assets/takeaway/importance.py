"""How much each input of each linear layer matters: what llama.cpp calls an importance matrix."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from compression_assets.text.datasets import TokenDataset


def importance(directory: Path, dataset: "TokenDataset") -> "dict[str, torch.Tensor]":
    """Weight name -> mean square of each input, fp32 [in], over all tokens of a calibration set.

    The same as llama.cpp's `imatrix`, which gathers it from texts.
    """
    import torch

    from compression_assets.machine.precision import compute_dtype
    from compression_assets.weights.checkpoints import load_for_scoring
    from compression_assets.weights.layers import linear_layers

    model = load_for_scoring(directory, "cpu", compute_dtype("cpu"))
    sums: dict[str, torch.Tensor] = {}

    def listen(name: str) -> Any:
        def add(_module: Any, inputs: tuple[Any, ...]) -> None:
            seen = inputs[0].reshape(-1, inputs[0].shape[-1]).float().square().sum(0)
            sums[name] = sums.get(name, 0) + seen

        return add

    for name in linear_layers(model):
        model.get_submodule(name).register_forward_pre_hook(listen(f"{name}.weight"))
    with torch.inference_mode():
        for row in dataset:
            model.base_model(input_ids=torch.tensor([row.input_ids]), use_cache=False)
    return {name: found / sum(len(row.input_ids) for row in dataset) for name, found in sums.items()}
