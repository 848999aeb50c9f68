"""A student whose parameters are sharded over ranks, and its loss as a node of autograd.

FSDP2 (torch.distributed.fsdp.fully_shard; Zhao et al. 2023, arXiv 2304.11277): every rank holds a part of each float32
parameter, of its gradient and of its moments. A layer's weights are gathered in the compute format when it runs, and
its gradients are summed in float32 over the ranks when its backward pass is done.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from compression_assets.text.batches import Batch
from compression_assets.training.head_loss import LossWeights, Targets, head_loss
from compression_assets.weights.layers import decoder_layers
from compression_assets.weights.logits import body_and_head

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


def sharded_student(model: "PreTrainedModel", mesh: "DeviceMesh", dtype: "torch.dtype") -> Any:
    """A module over `model`, a float32 model on the CPU, which is sharded in place on the mesh's devices.

    Called with (batch, weights, targets or None) it returns the pass's share of the loss, to be sent backward, and its
    sums of CE and KL, as `head_loss`. The sum of the ranks' gradients counts, not their mean: each loss is a share.
    Its float32 parameters are the masters; `dtype` is what passes compute with.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    student = _student_class()(model)
    for layer in decoder_layers(model).values():
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(student, mesh=mesh, mp_policy=policy)
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo knows neither means nor scaled sums.
            module.set_force_sum_reduction_for_comms(True)
    return student


def whole(tensor: "torch.Tensor") -> "torch.Tensor":
    """A sharded tensor gathered from all ranks, each of which has to call this; any other as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@cache
def _student_class() -> Any:
    """Made when needed, for its base class is torch's."""
    import torch

    class Student(torch.nn.Module):
        def __init__(self, model: "PreTrainedModel") -> None:
            super().__init__()
            self.model = model
            self.body, self.head = [[part] for part in body_and_head(model)]  # lists: no second registration

        def forward(
            self, batch: Batch, weights: LossWeights, targets: Targets | None
        ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
            # No attention mask, as in the loop of one process.
            states = self.body[0](input_ids=batch.input_ids, use_cache=False).last_hidden_state
            head = self.head[0]
            return _loss_function().apply(
                states[batch.predicts], head.weight, head.bias, batch.targets(), weights, targets
            )

    return Student


@cache
def _loss_function() -> Any:
    """`head_loss` for autograd, which hands the output layer's gradient to FSDP's hooks."""
    import torch

    class HeadLossFunction(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            hidden: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            ids: torch.Tensor,
            weights: LossWeights,
            targets: Targets | None,
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            sums = [
                None if tensor is None else torch.zeros_like(tensor, dtype=torch.float32)
                for tensor in (weight, bias)
            ]
            result = head_loss(hidden, weight, bias, ids, weights, targets, *sums)
            d_weight, d_bias = (
                None if total is None else total.to(tensor.dtype)
                for total, tensor in zip(sums, (weight, bias), strict=True)
            )
            ctx.save_for_backward(result.d_hidden, d_weight, d_bias)
            ctx.mark_non_differentiable(result.ce_sum, result.kl_sum)
            return result.loss, result.ce_sum, result.kl_sum

        @staticmethod
        def backward(ctx: Any, d_loss: torch.Tensor, *_: Any) -> tuple[Any, ...]:
            made = (
                None if tensor is None else tensor * d_loss.to(tensor.dtype) for tensor in ctx.saved_tensors
            )
            return *made, None, None, None

    return HeadLossFunction
