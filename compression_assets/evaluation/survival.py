"""How much of a training survives the quantization after it: measured and predicted, one weight matrix at a time.

Plain tensors in, plain numbers out; which matrices of which models belong together is said by diagnostics.py.

The prediction. A weight that lies on the grid at value v of a block with scale a moves by u, and the nearest code
passes every midpoint m between v and v + u; each takes the gap g between its two values. With u Gaussian of mean 0 and
variance s² (one s a matrix), independent of v, and a unchanged, the share of the update that survives is

    E[r u] / E[u²] = mean over weights of  sum over midpoints  g a / s · phi((m - v) a / s),

phi being the standard normal density, since E[u; u > t] = s · phi(t / s). It is 0 where updates are far below half a
bin, 1 where they are far above, and needs nothing of the training but s.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.format import Stored

if TYPE_CHECKING:
    import torch

SAMPLED_BLOCKS = 1024
"""A prediction takes so many evenly spaced blocks of a matrix, 65,536 weights: off by a percent, in milliseconds."""


@dataclass(frozen=True)
class Update:
    """The update u of one matrix by training, beside the grid that it started from.

    weights: how many. predicted: the closed form above, from rms and the grid alone; None where weights were not on
    the grid (then 1 is expected). rms, largest: of u. half_bin: mean distance to the nearer midpoint in weight units,
    from the grid value. beyond: share of weights that moved further than to a midpoint.
    """

    values: "torch.Tensor"
    grid: Stored
    weights: int
    predicted: float | None
    rms: float
    largest: float
    half_bin: float
    beyond: float


@dataclass(frozen=True)
class Survival:
    """What became of an update u when the matrix was quantized; r is the change of the quantized weight.

    codes_changed: share of them. surviving: <r, u> / ||u||², None without an update. The rest as in `Update`.
    """

    weights: int
    codes_changed: float
    surviving: float | None
    predicted: float | None
    update_rms: float
    update_max: float
    half_bin: float
    beyond: float


def measure_update(origin: "torch.Tensor", grid: Stored, trained: "torch.Tensor", on_grid: bool) -> Update:
    """Compare a matrix before and after training with its NF4 grid.

    origin, trained: [out, in] in full precision. grid: the NF4 parts of origin. on_grid: whether origin is exactly
    what they decode to, as it is after a dequantization. Raises ValueError when shapes differ.
    """
    import torch

    if not origin.shape == trained.shape == nf4.shape_of(grid):
        raise ValueError(
            f"{list(origin.shape)} and {list(trained.shape)} cannot be compared weight by weight"
        )
    update = trained.float() - origin.float()
    rms = (update.square().sum(dtype=torch.float64).item() / update.numel()) ** 0.5
    codes, absmax = nf4.block_codes(grid), nf4.block_absmax(grid)
    up, down = half_bins(codes, absmax, update.shape)
    half = up.minimum(down)
    # Where a block's scale is 0 there is no bin.
    half = half[half.isfinite()]
    beyond = ((update > up) | (update < -down)).sum().item() / update.numel()
    predicted = predict_surviving(codes, absmax, rms) if on_grid and rms else None
    return Update(
        update,
        grid,
        update.numel(),
        predicted,
        rms,
        update.abs().max().item(),
        half.mean().item() if half.numel() else 0.0,
        beyond,
    )


def measure_survival(update: Update, after: Stored) -> Survival:
    """What is left of an update in the NF4 parts `after` that the trained matrix was quantized to."""
    before = nf4.unpack_codes(update.grid[""], update.weights)
    changed = (before != nf4.unpack_codes(after[""], update.weights)).sum().item()
    return survival_of_change(
        update, nf4.dequantize(after) - nf4.dequantize(update.grid), changed / update.weights
    )


def survival_of_change(update: Update, change: "torch.Tensor", codes_changed: float) -> Survival:
    """The same for a change [out, in] of the decoded weights, however it is stored."""
    import torch

    energy = update.weights * update.rms**2
    return Survival(
        weights=update.weights,
        codes_changed=codes_changed,
        surviving=(change * update.values).sum(dtype=torch.float64).item() / energy if energy else None,
        predicted=update.predicted,
        update_rms=update.rms,
        update_max=update.largest,
        half_bin=update.half_bin,
        beyond=update.beyond,
    )


def half_bins(
    codes: "torch.Tensor", absmax: "torch.Tensor", shape: "torch.Size"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Distances [out, in] in weight units from each grid value to the midpoints around it; infinite at the ends.

    The first is to the midpoint above, the second to the one below.
    """
    import torch

    table = nf4.values(codes.device)
    half = (table[1:] - table[:-1]) / 2
    end = torch.full((1,), torch.inf)
    scale = absmax.abs().unsqueeze(1)
    above, below = (
        (torch.cat(parts)[codes.int()] * scale).reshape(-1)[: shape.numel()].reshape(shape)
        for parts in ((half, end), (end, half))
    )
    return above, below


def predict_surviving(codes: "torch.Tensor", absmax: "torch.Tensor", rms: float) -> float:
    """The closed form of this module's docstring: codes [blocks, 64], absmax [blocks], rms of the updates."""
    import torch

    table = nf4.values(codes.device).double()
    gaps, midpoints = table[1:] - table[:-1], (table[1:] + table[:-1]) / 2
    distances = midpoints[None, :] - table[:, None]  # [16 codes, 15 midpoints]
    every = -(-len(absmax) // SAMPLED_BLOCKS)
    scale = absmax[::every].double().abs() / rms
    held = torch.nn.functional.one_hot(codes[::every].long(), len(table)).sum(1)
    density = torch.exp(-0.5 * (distances * scale[:, None, None]).square()) / (2 * torch.pi) ** 0.5
    kept = (density * gaps).sum(2) * scale[:, None]  # [blocks, codes]
    return (kept * held).sum().item() / held.sum().item()


def total(parts: "list[Survival]") -> Survival:
    """Many matrices as one: shares and sums weighted as if they were a single long one."""
    weights = sum(part.weights for part in parts)
    energy = sum(part.weights * part.update_rms**2 for part in parts)

    def mean(name: str) -> float:
        return sum(part.weights * getattr(part, name) for part in parts) / weights

    def by_energy(name: str) -> float | None:
        known = [(part, getattr(part, name)) for part in parts if part.update_rms > 0]
        if not known or any(value is None for _, value in known):
            return None
        return sum(part.weights * part.update_rms**2 * value for part, value in known) / energy

    return Survival(
        weights=weights,
        codes_changed=mean("codes_changed"),
        surviving=by_energy("surviving"),
        predicted=by_energy("predicted"),
        update_rms=(energy / weights) ** 0.5,
        update_max=max(part.update_max for part in parts),
        half_bin=mean("half_bin"),
        beyond=mean("beyond"),
    )


def as_row(survival: Survival) -> dict[str, Any]:
    return {field.name: getattr(survival, field.name) for field in fields(survival)}
