"""Tiny models with random weights and a tokenizer of bytes, for tests and the smoke study. No network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from compression_assets.store.fingerprints import file_sha256
from compression_assets.strict import Strict

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY_SIZE = 256 + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a small model made of random numbers.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML with a constant system prompt when none is given, as Qwen2.5's and SmolLM2's templates have."""


class RandomModel(Strict):
    """A tiny model with seeded random weights and a tokenizer of bytes; nothing is downloaded.

    vocab_size defaults to the tokenizer's; a larger one is padded with ids that no text has.
    """

    kind: Literal["random"]
    architecture: Literal["qwen2", "llama"] = "qwen2"
    hidden_size: PositiveInt = 64
    intermediate_size: PositiveInt = 128
    num_hidden_layers: PositiveInt = 2
    num_attention_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt = 2
    vocab_size: Annotated[int, Field(ge=VOCABULARY_SIZE)] | None = None
    tie_word_embeddings: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _shapes_fit(self) -> "RandomModel":
        if (
            self.hidden_size % (2 * self.num_attention_heads)
            or self.num_attention_heads % self.num_key_value_heads
        ):
            raise ValueError(
                "hidden_size must be a multiple of 2 * num_attention_heads, "
                "and num_attention_heads of num_key_value_heads"
            )
        return self


def write(source: RandomModel, output_dir: Path, dtype: str) -> dict[str, Any]:
    """Write model and tokenizer of a `RandomModel` into `output_dir`; returns the facts of `fetch_model`."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        model = AutoModelForCausalLM.from_config(_config(source), dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # transformers starts biases at zero and norms at one, where forgetting one goes unnoticed.
                if parameter.ndim == 1:
                    centre = 0.0 if name.endswith("bias") else 1.0
                    parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(output_dir, max_shard_size="1TB")
    byte_tokenizer().save_pretrained(output_dir)
    return {
        "kind": "random",
        "origin": f"random {source.architecture}, seed {source.seed}",
        "license": "none needed: random numbers",
        "sha256": file_sha256(output_dir / "model.safetensors"),
        "parameters": model.num_parameters(),
        "vocab_size": model.config.vocab_size,
        "notes": [],
    }


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """One token a byte (ids 0 to 255 in the order of their printable stand-ins), then three special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # transformers gives every tokenizer that lies beside a Qwen2 model this normalizer.
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _config(source: RandomModel) -> "PretrainedConfig":
    from transformers import LlamaConfig, Qwen2Config

    architecture = {"qwen2": Qwen2Config, "llama": LlamaConfig}[source.architecture]
    return architecture(
        vocab_size=source.vocab_size or VOCABULARY_SIZE,
        hidden_size=source.hidden_size,
        intermediate_size=source.intermediate_size,
        num_hidden_layers=source.num_hidden_layers,
        num_attention_heads=source.num_attention_heads,
        num_key_value_heads=source.num_key_value_heads,
        tie_word_embeddings=source.tie_word_embeddings,
        max_position_embeddings=4096,
        # The default of 0.02 leaves a narrow model's logits all but equal, whatever is done to it.
        initializer_range=source.hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=256 + SPECIAL_TOKENS.index("<|im_end|>"),
        pad_token_id=256 + SPECIAL_TOKENS.index("<|endoftext|>"),
    )
