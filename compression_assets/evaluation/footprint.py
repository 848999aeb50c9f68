"""Size of a model directory: bytes of the saved weights, and how many parameters they stand for."""

from pathlib import Path

from compression_assets.evaluation.rows import MetricRow

MIB = 2**20


def weight_bytes(model_dir: Path) -> int:
    """Bytes of the published weight files (headers included, fp32 masters of training not)."""
    from compression_assets.weights.checkpoints import weight_files

    return sum(file.stat().st_size for file in weight_files(model_dir))


def parameters(model_dir: Path) -> int:
    """Number of parameters of the architecture in config.json, tied ones once, packed or not."""
    from compression_assets.weights.checkpoints import empty_model, read_config

    return sum(parameter.numel() for parameter in empty_model(read_config(model_dir)).parameters())


def measure_footprint(model_dir: Path, base_dir: Path) -> list[MetricRow]:
    """size_mib (the paper's "MB"), compression_ratio = base / model, tensor_mib and parameters.

    tensor_mib follows from shapes and format alone, so models that have both in common have the same; files of the same
    tensors differ by some bytes, since the digits that bitsandbytes prints into them do.
    """
    from compression_assets.weights.checkpoints import tensor_bytes

    own, base = weight_bytes(model_dir), weight_bytes(base_dir)
    return [
        MetricRow("size_mib", own / MIB, "MiB", 1, higher_is_better=False),
        MetricRow("compression_ratio", base / own, "1", 1, higher_is_better=True),
        MetricRow("tensor_mib", tensor_bytes(model_dir) / MIB, "MiB", 1, higher_is_better=False),
        MetricRow("parameters", float(parameters(model_dir)), "parameters", 1, higher_is_better=False),
    ]
