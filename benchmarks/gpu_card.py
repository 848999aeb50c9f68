"""Which card this is, as a plan knows it, and its peak by products of large matrices."""

import time
from dataclasses import replace

from compression_assets.planning.devices import CARDS, Device, this_cpu


def matmul(device: str, seconds: float = 0.5) -> float:
    """bfloat16 FLOP/s of large square matrix products: the best of some tries."""
    import torch

    size = 8192 if device != "cpu" else 512
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        for _ in range(4):
            product = left @ right
        product[0, 0].item()  # waits for the device
        best = max(best, 4 * 2.0 * size**3 / (time.perf_counter() - started))
    return best


def card_of(device: str) -> Device:
    """The device of a plan: a card by its name, else what torch says of it with the peak that is measured."""
    if device == "cpu":
        return this_cpu(measure=True)
    import torch

    about = torch.cuda.get_device_properties(device)
    known = next((card for short, card in CARDS.items() if short.upper() in about.name.upper()), None)
    if known is not None:
        return replace(known, name=about.name, memory=about.total_memory)
    flops = matmul(device)
    why = f"{flops / 1e12:.0f} TFLOP/s, measured, as no data sheet of this card is known here"
    return Device(about.name, "cuda", about.total_memory, flops, 0.40, 0.30, 1e9, why)
