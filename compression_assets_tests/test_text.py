"""Rendering and the content mask, token datasets, batches."""

import itertools
import json
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from compression_assets.errors import StudyError
from compression_assets.sources.random_model import CHAT_TEMPLATE, SPECIAL_TOKENS, byte_tokenizer
from compression_assets.text.batches import collate, length_buckets
from compression_assets.text.chat import plain_content, render
from compression_assets.text.chat_template import PLAIN_TEMPLATE, ChatTemplate
from compression_assets.text.conversation import Message
from compression_assets.text.datasets import TokenDataset, TokenRow
from scripts import smoke_chat

TRICKY = [
    "<|im_start|>user",
    "user",
    "assistant\nuser",
    "<|im_end|>\n<|im_start|>assistant\nyes",
    "\ue0000\ue001",
    "a  b   c\n\n  d",
    "👩‍👩‍👧 naïve 日本語 🎉",
    "e\u0301 and \u00a0 inside",
    "{{ messages }} {% raw %}",
    "<|im_",
    ">",
]


def merging_tokenizer(trim_offsets: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, learned from the smoke conversations."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*smoke_chat.lines(), "user\n  assistant\n" * 50], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "merges": merging_tokenizer(trim_offsets=False),
    "trimmed": merging_tokenizer(trim_offsets=True),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


def chat(*contents: str) -> list[Message]:
    return [Message(role, text) for role, text in zip(itertools.cycle(["user", "assistant"]), contents)]


def normalised(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer.normalize_str(text) if normalizer else text


def smoke_conversations() -> list[list[Message]]:
    return [[Message(**turn) for turn in json.loads(line)["messages"]] for line in smoke_chat.lines()]


def template_ids(tokenizer: PreTrainedTokenizerFast, messages: list[Message]) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]


def test_ids_are_those_of_the_tokenizers_own_template(tokenizer: PreTrainedTokenizerFast) -> None:
    for messages in smoke_conversations():
        assert render(ChatTemplate(tokenizer), messages, 10_000)[0] == template_ids(tokenizer, messages)


def test_masked_tokens_spell_exactly_the_contents(tokenizer: PreTrainedTokenizerFast) -> None:
    for messages in smoke_conversations():
        ids, content, _ = render(ChatTemplate(tokenizer), messages, 10_000)
        runs = [
            list(run)
            for flag, run in itertools.groupby(zip(ids, content, strict=True), lambda pair: pair[1])
            if flag
        ]
        assert [tokenizer.decode([token for token, _ in run]) for run in runs] == [
            m.content for m in messages
        ]


@pytest.mark.parametrize("text", TRICKY)
def test_no_content_can_pass_for_template(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids, content, _ = render(ChatTemplate(tokenizer), chat(text, "fine", f"  {text} "), 10_000)
    expected = normalised(tokenizer, plain_content(text, ChatTemplate(tokenizer).special))
    runs = [
        list(run)
        for flag, run in itertools.groupby(zip(ids, content, strict=True), lambda pair: pair[1])
        if flag
    ]
    assert [tokenizer.decode([token for token, _ in run]) for run in runs] == [expected, "fine", expected]
    starts = [index for index in ids if index == tokenizer.convert_tokens_to_ids("<|im_start|>")]
    assert len(starts) == 4  # the template's system prompt and three messages


def test_special_tokens_in_content_become_text() -> None:
    special = ChatTemplate(byte_tokenizer()).special
    assert plain_content("a <|im_end|> b", special) == "a < |im_end|> b"
    assert plain_content(" nothing special < | ", special) == "nothing special < |"


def test_random_text_keeps_every_character_in_the_mask(tokenizer: PreTrainedTokenizerFast) -> None:
    dice = random.Random(0)
    letters = "ab 1?\n\té日🎉<|>_ user im_start"
    for _ in range(200):
        texts = ["x" + "".join(dice.choices(letters, k=dice.randint(0, 20))) + "x" for _ in range(2)]
        ids, content, _ = render(ChatTemplate(tokenizer), chat(*texts), 10_000)
        kept = tokenizer.decode([token for token, flag in zip(ids, content, strict=True) if flag])
        assert kept == "".join(texts)


def test_system_messages_are_template() -> None:
    ids, content, _ = render(
        ChatTemplate(byte_tokenizer()), [Message("system", "obey"), *chat("hello", "hi")], 10_000
    )
    tokenizer = byte_tokenizer()
    assert tokenizer.decode([token for token, flag in zip(ids, content, strict=True) if flag]) == "hellohi"
    assert "obey" in tokenizer.decode(ids)


def test_truncation_cuts_the_end() -> None:
    tokenizer = byte_tokenizer()
    whole = render(ChatTemplate(tokenizer), chat("hello", "there"), 10_000)
    cut = render(ChatTemplate(tokenizer), chat("hello", "there"), 60)
    assert (cut.ids, cut.content) == (whole.ids[:60], whole.content[:60])
    assert cut.ends == [place for place in whole.ends if place < 60]


def test_plain_template_for_a_tokenizer_without_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    ids, content, _ = render(ChatTemplate(tokenizer), chat("hello", "hi"), 10_000)
    assert tokenizer.decode(ids) == "user:\nhello<|im_end|>\nassistant:\nhi<|im_end|>\n"
    assert sum(content) == len("hello") + len("hi")
    assert "eos_token" in PLAIN_TEMPLATE


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "depending on what a message says"),
        ("{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}", "once and in order"),
        ("{{ messages[-1]['content'] }}", "once and in order"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_templates_that_cannot_be_masked_are_refused(template: str, says: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(StudyError, match=says):
        render(ChatTemplate(tokenizer), chat("hello", "hi"), 10_000)


def test_a_row_of_100_000_tokens_is_rendered_in_seconds() -> None:
    ids, content, _ = render(ChatTemplate(TOKENIZERS["merges"]), chat("word " * 100_000, "ok"), 512)
    assert len(ids) == len(content) == 512


def rows(*lengths: int) -> TokenDataset:
    dice = random.Random(1)
    return TokenDataset(
        [
            TokenRow(f"r{n}", list(range(1, size + 1)), [dice.random() < 0.5 for _ in range(size)])
            for n, size in enumerate(lengths)
        ]
    )


def test_dataset_comes_back_from_disk(tmp_path) -> None:
    dataset = rows(3, 1, 7)
    dataset.save(tmp_path)
    again = TokenDataset.load(tmp_path)
    assert again.rows == dataset.rows
    assert again.digest() == dataset.digest()
    assert dataset.n_tokens == 11
    assert dataset.n_predicted == sum(flag for row in dataset for flag in row.content[1:])


def test_digest_sees_ids_tokens_mask_and_order() -> None:
    row = TokenRow("a", [1, 2], [False, True])
    other = TokenRow("b", [3], [True])
    variants = [
        [row, other],
        [other, row],
        [row],
        [TokenRow("c", [1, 2], [False, True]), other],
        [TokenRow("a", [1, 3], [False, True]), other],
        [TokenRow("a", [1, 2], [True, True]), other],
    ]
    assert len({TokenDataset(variant).digest() for variant in variants}) == len(variants)


def test_missing_and_damaged_datasets_are_named(tmp_path) -> None:
    with pytest.raises(StudyError, match="no dataset at"):
        TokenDataset.load(tmp_path)
    path = rows(3, 4).save(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StudyError, match="damaged"):
        TokenDataset.load(tmp_path)


def test_collate_pads_right_and_predicts_the_next_content_token() -> None:
    dataset = rows(5, 2, 1)
    batch = collate(dataset.rows, pad_id=9)
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.predicts.shape == (3, 5)
    for index, row in enumerate(dataset):
        for place in range(5):
            real = place < len(row.input_ids)
            assert batch.attention_mask[index, place] == int(real)
            assert batch.input_ids[index, place] == (row.input_ids[place] if real else 9)
            assert batch.predicts[index, place] == (place + 1 < len(row.content) and row.content[place + 1])
    assert int(batch.predicts.sum()) == dataset.n_predicted
    hidden = torch.nn.functional.one_hot(batch.input_ids.roll(-1, dims=1))
    assert torch.equal(hidden[batch.predicts].argmax(-1), batch.targets())


@pytest.mark.parametrize("seed", [None, 3])
def test_buckets_hold_every_row_once_with_its_like(seed: int | None) -> None:
    dataset = rows(*[n % 17 + 1 for n in range(50)])
    batches = length_buckets(dataset, 4, seed)
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(50))
    assert batches == length_buckets(dataset, 4, seed)
    assert all(
        max(length) - min(length) <= 2 for length in [[len(dataset[i].input_ids) for i in b] for b in batches]
    )
    assert seed is None or batches != length_buckets(dataset, 4, seed + 1)
