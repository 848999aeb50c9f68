"""A written quantized model, loaded as any user loads it, gives its first answer, or a reason why it cannot here."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.weights import checkpoints
from compression_assets.weights.formats.layout import LAYERS, layout_of, quantization_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT = "Tell me about your day."
"""Continued as plain text: a chat template may write today's date, need a name or refuse a message."""
DEVICES = ("cpu", "cuda")


def answer_or_reason(directory: Path, model: "PreTrainedModel", device: str, tokens: int) -> dict[str, Any]:
    """Load a written model; metadata on where it runs: it answers here, or why it cannot and which devices can.

    model: the (meta) model of the same shapes. They decide, not a trial: depending on the processor, kernels
    raise on a shape that they cannot take, or compute nonsense.
    """
    kind = device.partition(":")[0]
    reason = cannot_run(directory, model, kind)
    if not _unsupported(directory, model, kind):
        # Also a model that cannot run here has to load as a whole.
        loaded = load_as_user(directory, device)
    if reason:
        others = [other for other in DEVICES if not cannot_run(directory, model, other)]
        return {"answers_on": others, "answers_on_reason": reason}
    return {"answers_on": [kind], "answer": generate_answer(loaded, directory, tokens)}


def cannot_run(directory: Path, model: "PreTrainedModel", device: str) -> str:
    """Why a directory does not run by itself on a kind of device ("cpu", "cuda"); "" if it does.

    model: one of the same shapes.
    """
    where = "this CPU" if device == "cpu" else device
    if unsupported := _unsupported(directory, model, device):
        return f"transformers does not run {unsupported} on {where}; it is scored through its dequantized weights"
    layout = layout_of(directory)
    tensors = checkpoints.model_tensors(model)
    reasons = {tensor.module: layout(tensor).misfit(tensor.shape, device) for tensor in tensors}
    misfits = [module for module, reason in reasons.items() if reason]
    if not misfits:
        return ""
    first = misfits[0]
    return f"the kernels of {where} cannot run {len(misfits)} layers' shapes, first {first}: {reasons[first]}"


def _unsupported(directory: Path, model: "PreTrainedModel", device: str) -> str:
    """What in a directory transformers has no kernels for on a kind of device: the title of a format; else ""."""
    if LAYERS in quantization_of(directory):
        return "a mixture of number formats"
    layout = layout_of(directory)
    forms = (layout(tensor) for tensor in checkpoints.model_tensors(model))
    return next((form.title for form in forms if device not in form.devices), "")


def load_as_user(directory: Path, device: str) -> "PreTrainedModel":
    """The model as any user loads it. Raises StudyError when a tensor of it is missing or unknown."""
    from transformers import AutoModelForCausalLM

    with checkpoints.quiet():
        model, loading = AutoModelForCausalLM.from_pretrained(
            directory,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            device_map=device,
            output_loading_info=True,
        )
    if any(loading.values()):
        raise StudyError(f"{directory} does not load as a whole ({loading}); build this model again")
    return model


def generate_answer(model: "PreTrainedModel", directory: Path, tokens: int) -> str:
    """Exactly `tokens` tokens behind PROMPT, greedily. StudyError if a logit is not finite."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    encoded = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    length = encoded["input_ids"].shape[1]
    generated = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    if not all(torch.isfinite(step).all() for step in generated.logits):
        raise StudyError(f"{directory} answers with logits that are not finite; build this model again")
    return str(tokenizer.decode(generated.sequences[0, length:], skip_special_tokens=True))
