"""The NF4 number format as bitsandbytes stores it: codes, absmax and their parts in a checkpoint.

One weight matrix at a time; whole directories are in quantization.py and dequantization.py. A stored weight
is a dict from suffix ("" for the packed codes, ".absmax", …) to tensor, as bitsandbytes names them.
Sources: Dettmers et al. 2023 (QLoRA, arXiv 2305.14314); bitsandbytes.functional.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from bitsandbytes.functional import QuantState
    from transformers import PreTrainedModel

Stored = dict[str, "torch.Tensor"]

BLOCKSIZE = 64
NESTED_BLOCKSIZE = 256
CODE_OF_ZERO = 7
DESCRIPTION = ".quant_state.bitsandbytes__"
DESCRIPTOR = f"{DESCRIPTION}nf4"
PARTS = {"", ".absmax", ".quant_map"}
"""Besides the descriptor, whose name ends in the format: nf4, or fp4, which differs in its 16 values only."""
NESTED_PARTS = {".nested_absmax", ".nested_quant_map"}

# bitsandbytes' CPU kernels pack 32 rows together and read whole blocks of a row.
CPU_OUT_MULTIPLE = 32


def linear_layers(model: "PreTrainedModel") -> list[str]:
    """Names of the modules that NF4 covers: every nn.Linear except the output embedding."""
    from torch.nn import Linear

    output = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if type(module) is Linear and module is not output]


def linear_weights(model: "PreTrainedModel") -> set[str]:
    """Names of the parameters that NF4 covers."""
    return {f"{name}.weight" for name in linear_layers(model)}


def fits_cpu(shape: "torch.Size") -> bool:
    """Whether bitsandbytes' CPU kernels multiply by a weight [out, in] correctly; CUDA takes any shape."""
    out_features, in_features = shape
    return in_features % BLOCKSIZE == 0 and out_features % CPU_OUT_MULTIPLE == 0


def stored_bytes(weights: int, double_quant: bool = True) -> int:
    """Bytes that a matrix of so many weights takes in a file, its JSON descriptor left out.

    Two codes a byte, absmax for every 64 weights in one byte (fp32 without double quantization), then fp32
    for every 256 absmax, and the code tables of 16 and 256 fp32.
    """
    blocks = -(-weights // BLOCKSIZE)
    codes = -(-weights // 2) + 4 * 16
    if not double_quant:
        return codes + 4 * blocks
    return codes + blocks + 4 * -(-blocks // NESTED_BLOCKSIZE) + 4 * 256


def nearest_codes(weight: "torch.Tensor", kind: str = "nf4") -> "tuple[torch.Tensor, torch.Tensor]":
    """bitsandbytes' rounding: codes uint8 [n] of the nearest NF4 values, and absmax fp32 [n / 64]."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=BLOCKSIZE, compress_statistics=False, quant_type=kind)
    return unpack_codes(packed, weight.numel()), state.absmax


def quantize(weight: "torch.Tensor", double_quant: bool = True, kind: str = "nf4") -> Stored:
    """Store a weight fp32 or bf16 [out, in] as bitsandbytes would, as NF4 (or FP4) parts on the CPU.

    Computed on the weight's device. Other ways to round are in rounding.py.
    """
    codes, absmax = nearest_codes(weight, kind)
    return store(codes, absmax, weight.shape, double_quant, kind)


def kind_of(stored: Stored) -> str:
    """ "nf4" or "fp4"."""
    return next(suffix.removeprefix(DESCRIPTION) for suffix in stored if suffix.startswith(DESCRIPTION))


def store(
    codes: "torch.Tensor", absmax: "torch.Tensor", shape: "torch.Size", double_quant: bool, kind: str = "nf4"
) -> Stored:
    """Codes uint8 [n] (0..15) and absmax fp32 [blocks] as the parts of a bitsandbytes checkpoint.

    The descriptor says bf16 whatever the codes were computed from, so that it loads as any NF4 model does.
    """
    import torch
    from bitsandbytes.functional import QuantState, get_4bit_type, quantize_blockwise

    offset = state2 = None
    if double_quant:
        offset = absmax.mean()
        absmax, state2 = quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCKSIZE)
    state = QuantState(
        absmax=absmax,
        shape=shape,
        dtype=torch.bfloat16,
        blocksize=BLOCKSIZE,
        code=get_4bit_type(kind, device=codes.device),
        quant_type=kind,
        offset=offset,
        state2=state2,
    )
    parts = {f".{suffix}": tensor.cpu() for suffix, tensor in state.as_dict(packed=True).items()}
    return {"": pack_codes(codes).cpu(), **parts}


def dequantize(stored: Stored) -> "torch.Tensor":
    """The exact fp32 weight [out, in] of stored parts, by definition: NF4 value of a code × absmax of its block.

    Not by bitsandbytes' kernel: on a CPU with AVX-512 that one takes blocks to begin anew in every row, and is
    silently wrong (relative error 0.28 instead of 0.09) where in_features is a multiple of 16 but not of 64.
    """
    state = _state(stored)
    values = state.code[block_codes(stored).int()] * block_absmax(stored).unsqueeze(1)
    return values.reshape(-1)[: state.shape.numel()].reshape(state.shape)


def dequantize_by_kernel(stored: Stored) -> "torch.Tensor":
    """The same by bitsandbytes' kernel, from one long row so that it is right: the check on `dequantize`."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    state = _state(stored)
    shape, state.dtype, state.shape = state.shape, torch.float32, torch.Size([1, 2 * stored[""].numel()])
    return dequantize_4bit(stored[""], state).reshape(-1)[: shape.numel()].reshape(shape)


def block_codes(stored: Stored) -> "torch.Tensor":
    """Codes uint8 [blocks, 64]; the last block is filled up with zeros."""
    import torch

    n = _state(stored).shape.numel()
    return torch.nn.functional.pad(unpack_codes(stored[""], n), (0, -n % BLOCKSIZE)).reshape(-1, BLOCKSIZE)


def block_absmax(stored: Stored) -> "torch.Tensor":
    """Absmax fp32 [blocks] as stored: after double quantization, which may even make a tiny one negative."""
    state = _state(stored)
    if not state.nested:
        return state.absmax
    scale = state.state2.absmax.repeat_interleave(NESTED_BLOCKSIZE)[: state.absmax.numel()]
    return state.state2.code[state.absmax.int()] * scale + state.offset


def values(device: "torch.device | str" = "cpu") -> "torch.Tensor":
    """The 16 NF4 values, rising from -1 to 1: fp32 [16]."""
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type("nf4", device=device)


def shape_of(stored: Stored) -> "torch.Size":
    """[out, in] of the weight that was stored."""
    return _state(stored).shape


def pack_codes(codes: "torch.Tensor") -> "torch.Tensor":
    """Codes uint8 [n] (0..15), two a byte with the first in the high bits, as uint8 [ceil(n / 2), 1]."""
    import torch

    codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2), value=CODE_OF_ZERO)
    return ((codes[::2] << 4) | codes[1::2]).unsqueeze(1)


def unpack_codes(packed: "torch.Tensor", n: int) -> "torch.Tensor":
    """The first n codes, uint8 [n], of what `pack_codes` made."""
    import torch

    flat = packed.reshape(-1)
    return torch.stack((flat >> 4, flat & 0xF), dim=1).reshape(-1)[:n]


def _state(stored: Stored) -> "QuantState":
    from bitsandbytes.functional import QuantState

    # from_dict takes the descriptor out of the dict that it is given.
    parts = {suffix.removeprefix("."): tensor for suffix, tensor in stored.items() if suffix}
    return QuantState.from_dict(parts, device=stored[""].device)
