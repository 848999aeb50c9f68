"""Writing a model directory in nibbles."""

import json

from compression_assets.store.reports import StepReport
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.files import read_tensors, tensor_headers, write_weights
from two_techniques.nibbles import Nibbles


def pack(step: StepInputs) -> StepReport:
    """Nearest rounding of every linear layer's master."""
    form, config = Nibbles(), json.loads((step.parent / "config.json").read_text())
    model = checkpoints.empty_model(checkpoints.read_config(step.parent))
    covered = {tensor.name for tensor in checkpoints.model_tensors(model) if form.covers(tensor)}
    file = {}
    for name, tensor in read_tensors(checkpoints.masters_or_published(step.parent)):
        parts = form.quantize(tensor) if name in covered else {"": checkpoints.published(tensor)}
        file |= {form.tensor_name(name, part): content for part, content in parts.items()}
    write_weights(file, step.output)
    (step.output / "config.json").write_text(json.dumps({**config, "quantization_config": form.to_config()}))
    checkpoints.copy_tokenizer(step.parent, step.output)
    return StepReport(
        checks=(checkpoints.check_size(step.output),),
        metadata={
            "rows_read": len(TokenDataset.load(step.data["calibration_set"])),
            "tensors_of_first": len(tensor_headers(step.models["first"])),
        },
    )
