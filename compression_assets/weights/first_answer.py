"""A written NF4 or int8 model, loaded as any user loads it, gives its first answer, or a reason why it cannot here."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.weights import checkpoints, nf4
from compression_assets.weights import quantized as quantized_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT = "Tell me about your day."


def answer_or_reason(directory: Path, model: "PreTrainedModel", device: str, tokens: int) -> dict[str, Any]:
    """Load a written model; metadata on where it runs: it answers here, or its shapes say why only CUDA can.

    model: the (meta) model of the same shapes. They decide, not a trial: depending on the processor,
    bitsandbytes' CPU kernels raise on a shape that they cannot take, or compute nonsense.
    """
    kind = device.partition(":")[0]
    modules = dict(model.named_modules())
    misfits = [name for name in nf4.linear_layers(model) if not nf4.fits_cpu(modules[name].weight.shape)]
    if quantized_weights.is_int8(directory):
        misfits = []  # its CPU kernels take any shape
    loaded = load_as_user(directory, device)
    if kind != "cpu" or not misfits:
        return {"answers_on": [kind], "answer": generate_answer(loaded, directory, tokens)}
    out_features, in_features = modules[misfits[0]].weight.shape
    reason = (
        f"{len(misfits)} layers have shapes that bitsandbytes cannot run on a CPU, first {misfits[0]}: "
        f"in_features {in_features} and out_features {out_features} "
        f"must be multiples of {nf4.BLOCKSIZE} and {nf4.CPU_OUT_MULTIPLE}"
    )
    return {"answers_on": ["cuda"], "answers_on_reason": reason}


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
    """Exactly `tokens` tokens, greedily, with the directory's tokenizer. StudyError if a logit is not finite."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    prompt = PROMPT
    if tokenizer.chat_template:
        message = {"role": "user", "content": PROMPT}
        prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    special = not tokenizer.chat_template
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=special).to(model.device)
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
