"""Chat templates as five families of models have them, cut down to what decides their text, with tiny tokenizers."""

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Family:
    """template: the chat template. special: its special tokens. eos: the tokenizer's end token.

    user_end, answer_end: what ends a message of the user and of the assistant. rstrip: special tokens swallow the white
    space behind them. spaces: SentencePiece's way of putting a word's space into its token.
    """

    template: str
    special: tuple[str, ...]
    eos: str
    user_end: str
    answer_end: str
    bos: str | None = None
    rstrip: bool = False
    spaces: bool = False

    def tokenizer(self) -> PreTrainedTokenizerFast:
        backend = with_spaces() if self.spaces else of_bytes()
        backend.add_special_tokens(
            [AddedToken(text, special=True, normalized=False, rstrip=self.rstrip) for text in self.special]
        )
        settings: dict[str, Any] = {"bos_token": self.bos} if self.bos else {}
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=self.eos,
            chat_template=self.template,
            clean_up_tokenization_spaces=False,
            **settings,
        )


def of_bytes() -> Tokenizer:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def with_spaces(words: tuple[str, ...] = ("aye", "meadow")) -> Tokenizer:
    """SentencePiece's way: spaces are letters (U+2581), one before every text; the words given are one token each."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += sorted(set("abcdefghijklmnopqrstuvwxyzINST[]/?."))
    merges = []
    for word in words:
        whole = f"▁{word}"
        merges += [(whole[:end], whole[end]) for end in range(1, len(whole))]
        pieces += [whole[: end + 1] for end in range(1, len(whole))]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


FAMILIES = {
    "ChatML": Family(
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        user_end="<|im_end|>",
        answer_end="<|im_end|>",
    ),
    "Llama-3": Family(
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        user_end="<|eot_id|>",
        answer_end="<|eot_id|>",
    ),
    "Gemma": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        bos="<bos>",
        user_end="<end_of_turn>",
        answer_end="<end_of_turn>",
    ),
    "Mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"),
        eos="</s>",
        bos="<s>",
        user_end=" [/INST]",
        answer_end="</s>",
        spaces=True,
    ),
    "Phi-3": Family(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
        user_end="<|end|>",
        answer_end="<|end|>",
        rstrip=True,
    ),
}
