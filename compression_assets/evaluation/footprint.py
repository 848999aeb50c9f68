"""Size of a model directory: bytes of the saved weights, and how many parameters they stand for."""

from pathlib import Path

from compression_assets.evaluation.rows import MetricRow

MIB = 2**20
DESCRIPTION = ".quant_state."
"""In the names of tensors that hold JSON."""


def weight_bytes(model_dir: Path) -> int:
    """Bytes of the published weight files (headers included, fp32 masters of training not)."""
    from compression_assets.weights.checkpoints import weight_files

    return sum(file.stat().st_size for file in weight_files(model_dir))


def tensor_bytes(model_dir: Path) -> int:
    """Bytes that follow from shapes and format alone: two models that have both in common have the same.

    Left out: headers, and the description that bitsandbytes puts beside each weight, whose printed digits vary.
    """
    from compression_assets.weights.files import tensor_headers

    ranges = [
        entry["data_offsets"] for name, entry in tensor_headers(model_dir).items() if DESCRIPTION not in name
    ]
    return sum(end - begin for begin, end in ranges)


def parameters(model_dir: Path) -> int:
    """Number of parameters of the architecture in config.json, tied ones once, packed or not."""
    from compression_assets.weights.checkpoints import empty_model, read_config

    return sum(parameter.numel() for parameter in empty_model(read_config(model_dir)).parameters())


def measure_footprint(model_dir: Path, base_dir: Path) -> list[MetricRow]:
    """size_mib (the paper's "MB"), compression_ratio = base / model, parameters, and tensor_mib (`tensor_bytes`)."""
    own, base = weight_bytes(model_dir), weight_bytes(base_dir)
    return [
        MetricRow("size_mib", own / MIB, "MiB", 1, higher_is_better=False),
        MetricRow("compression_ratio", base / own, "1", 1, higher_is_better=True),
        MetricRow("tensor_mib", tensor_bytes(model_dir) / MIB, "MiB", 1, higher_is_better=False),
        MetricRow("parameters", float(parameters(model_dir)), "parameters", 1, higher_is_better=False),
    ]
