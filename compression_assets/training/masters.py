"""Float32 master weights of a model that computes in a narrower format, and their optimiser step.

A bfloat16 weight has 8 bits of mantissa: an update below 1/256 of the weight is lost, which is most of them. The
optimiser therefore works on float32 copies, which are rounded into the model after every step. Schedules,
data and losses belong to `loop`.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
AsStored = Callable[[str, "torch.Tensor"], "torch.Tensor | None"]


class MasterWeights:
    """Float32 masters, gradient sums and AdamW for the trainable parameters of one model.

    The model's parameters are converted to `dtype` in place; its buffers (the rotary frequencies) keep theirs.
    Parameters that are tied are one tensor here. With dtype float32 the parameters are their own masters.

    as_stored: makes of a parameter's name and float32 master the weight that the model computes with, where that is not
    the master itself rounded to `dtype`; None for a parameter that it leaves alone. Gradients go to the master as if
    it were (the straight-through estimator).

    Gradients are summed in float32 over the backward passes of a step: each is moved out of the model as soon as
    it is complete, so a backward pass never holds more than one layer's in the narrow format. Of an embedding only the
    rows that a pass has read are added: autograd's gradient is as large as the table, nearly all of it zeros, and took
    2 % of a step of SmolLM2-135M.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        dtype: "torch.dtype",
        learning_rate: float,
        weight_decay: float,
        optimizer: Optimizer = "adamw",
        as_stored: AsStored | None = None,
    ) -> None:
        import torch

        self._as_stored = as_stored

        self.names: list[str] = []
        self.parameters: list[torch.nn.Parameter] = []
        self.masters: list[torch.Tensor] = []
        self._hooks = []
        for name, parameter in model.named_parameters():
            master = parameter.detach().to(torch.float32)
            parameter.data = master if dtype == torch.float32 else parameter.detach().to(dtype)
            if as_stored is not None and parameter.data_ptr() == master.data_ptr():
                parameter.data = master.clone()
            if parameter.requires_grad:
                self.names.append(name)
                self.parameters.append(parameter)
                self.masters.append(master)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(_collector(master)))
        self._master_of = {id(p): master for p, master in zip(self.parameters, self.masters, strict=True)}
        for module in model.modules():
            if _plain_table(module) and id(module.weight) in self._master_of:
                self._hooks.append(module.register_forward_hook(self._collect_rows))
        # Norms and biases are vectors; decaying them would pull them towards zero, not towards simplicity.
        groups: list[dict[str, Any]] = [
            {"params": [m for m in self.masters if m.ndim > 1], "weight_decay": weight_decay},
            {"params": [m for m in self.masters if m.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.optimizer = _optimizer(optimizer, groups, learning_rate)
        if as_stored is not None:
            self.round_into_model()

    def gradient(self, parameter: "torch.nn.Parameter") -> "torch.Tensor | None":
        """The float32 gradient sum of a parameter, to add to directly; None if it is not trained."""
        import torch

        master = self._master_of.get(id(parameter))
        if master is not None and master.grad is None:
            master.grad = torch.zeros_like(master)
        return None if master is None else master.grad

    def _collect_rows(self, module: Any, arguments: Any, output: "torch.Tensor") -> "torch.Tensor":
        """A forward hook of an embedding: cuts the table off the graph and adds its rows' gradients to the master's."""
        import torch

        if not output.requires_grad:
            return output
        (ids,) = arguments

        def collect(rows: torch.Tensor) -> None:
            read, places = ids.unique(return_inverse=True)
            total = self.gradient(module.weight)
            assert rows.grad is not None and total is not None
            # Autograd's own kernel, the same on every device, on a table of these rows alone. In the master's format:
            # in bfloat16 a token that is read 1,000 times loses 3 % of its gradient.
            given = rows.grad.to(total.dtype)
            sums = torch.ops.aten.embedding_dense_backward(given, places, len(read), -1, False)
            rows.grad = None
            if module.padding_idx is not None:
                sums[read == module.padding_idx] = 0
            total.index_add_(0, read, sums)

        rows = output.detach().requires_grad_()
        rows.register_post_accumulate_grad_hook(collect)
        return rows.clone()  # a model may scale what it has read in place, which a leaf does not allow

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip the summed gradients to `max_grad_norm`, update the masters, round them into the model.

        Returns the gradient's norm before clipping. If that is not finite nothing is changed.
        """
        import torch

        present = [master for master in self.masters if master.grad is not None]
        norm = torch.nn.utils.get_total_norm([master.grad for master in present])
        if not torch.isfinite(norm):
            return float(norm)
        if isinstance(self.optimizer, torch.optim.AdamW):
            # Divided by in the fused kernel, which spares a walk through all gradients.
            self.optimizer.grad_scale = (norm / max_grad_norm).clamp(min=1.0)
        else:
            torch.nn.utils.clip_grads_with_norm_(present, max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.round_into_model()
        return float(norm)

    def drop_gradients(self) -> None:
        """Forget what backward passes have left since the last step, finished or not."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.grad = master.grad = None

    def round_into_model(self) -> None:
        """Copy the masters into the model's parameters, as they would be stored if that was asked for."""
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            stored = self._as_stored(name, master) if self._as_stored else None
            if stored is not None:
                parameter.data.copy_(stored)
            elif parameter.data_ptr() != master.data_ptr():
                parameter.data.copy_(master)

    def masters_to(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """The model with the masters as its float32 parameters; ends the training of this object."""
        import torch

        for hook in self._hooks:
            hook.remove()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.float32)
            parameter.grad = None
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None
            parameter.data = master
        return model

    def state(self) -> "dict[str, torch.Tensor]":
        """Masters and the optimiser's state by name, for a checkpoint."""
        import torch

        tensors = {}
        for name, master in zip(self.names, self.masters, strict=True):
            tensors[f"master.{name}"] = master
            for key, value in self.optimizer.state.get(master, {}).items():
                # bitsandbytes counts steps in a plain number.
                value = value if torch.is_tensor(value) else torch.tensor(value)
                # It also gives all parameters the same table of 8-bit values, and a file takes no tensor twice.
                tensors[f"{key}.{name}"] = value.clone() if key.startswith("qmap") else value
        return tensors

    def load_state(self, tensors: "dict[str, torch.Tensor]") -> None:
        """Take over what `state` returned; KeyError if a parameter is missing from it."""
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(tensors[f"master.{name}"])
            found = {
                key.removesuffix(f".{name}"): value
                for key, value in tensors.items()
                if key.partition(".")[2] == name and not key.startswith("master.")
            }
            if "exp_avg" in found:
                # The fused AdamW keeps its count of steps on the device.
                step = found.pop("step").clone().to(master.device)
                moments = {key: value.to(master.device) for key, value in found.items()}
                self.optimizer.state[master] = {"step": step, **moments}
            elif found:
                self._load_8_bit(master, found)
        self.round_into_model()

    def _load_8_bit(self, master: "torch.Tensor", found: "dict[str, torch.Tensor]") -> None:
        """Into moments as bitsandbytes makes them: those that it pages stay paged."""
        import torch

        optimizer: Any = self.optimizer
        for number, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                if parameter is master:
                    optimizer.init_state(group, master, number, place)
        state = optimizer.state[master]
        for key, value in found.items():
            if torch.is_tensor(state[key]):
                state[key].copy_(value)
            else:
                state[key] = int(value)


def _optimizer(
    kind: Optimizer, groups: list[dict[str, Any]], learning_rate: float
) -> "torch.optim.Optimizer":
    """AdamW with moments in float32, or in 8 bits by bitsandbytes (arXiv 2110.02861), there paged or not."""
    import torch

    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    import bitsandbytes

    made = bitsandbytes.optim.AdamW8bit if kind == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit
    with warnings.catch_warnings():
        # Paging needs CUDA; elsewhere the same moments simply stay where they are, and the run's notes say so.
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported")
        optimizer: torch.optim.Optimizer = made(groups, lr=learning_rate)
    return optimizer


def _collector(master: "torch.Tensor") -> Any:
    def collect(parameter: "torch.Tensor") -> None:
        import torch

        if master.grad is None:
            master.grad = parameter.grad.to(torch.float32) if parameter.grad is not None else None
        elif parameter.grad is not None:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return collect


def _plain_table(module: Any) -> bool:
    """Whether a module's output is rows of its weight and nothing else; subclasses scale them."""
    import torch

    plain = type(module) is torch.nn.Embedding
    return plain and module.max_norm is None and not (module.sparse or module.scale_grad_by_freq)
