"""Plain fine-tuning (FT): the control beside distillation, without a teacher."""

from compression_assets.store.reports import StepReport
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.finetuning import finetune
from compression_assets.training.resuming import checkpoints_in


def finetune_step(step: StepInputs) -> StepReport:
    """Fine-tune the parent on the distillation set, from its float32 masters where there are some."""
    from compression_assets.weights.checkpoints import (
        check_finite,
        check_size,
        load_full_precision,
        save_full_precision,
    )

    dataset = TokenDataset.load(step.data["distillation_set"])
    model = load_full_precision(step.parent)
    checkpoints = checkpoints_in(step.scratch, model, dataset, step.recipe, step.seed, step.device)
    done = finetune(
        model, dataset, step.recipe, step.seed, step.device, step.report, checkpoints, step.devices
    )
    save_full_precision(model.cpu(), step.output, tokenizer_from=step.parent, masters=True)
    checks = (check_finite(step.output), check_size(step.output))
    return StepReport(checks, done.metadata(), done.tokens_seen, done.peak_bytes)
