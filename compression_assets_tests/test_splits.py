"""Splits are disjoint, deterministic and as large as asked."""

import pytest
from pydantic import ValidationError

from compression_assets.errors import StudyError
from compression_assets.sources.random_model import byte_tokenizer
from compression_assets.text.chat import Conversation, Message
from compression_assets.text.datasets import TokenDataset
from compression_assets.text.splits import SplitSize, content_hashes, conversation_hash, make_splits, overlap

TOKENIZER = byte_tokenizer()


def conversation(number: int, text: str | None = None, reply: str = "yes") -> Conversation:
    return Conversation(
        str(number), (Message("user", text or f"question {number}"), Message("assistant", reply))
    )


CONVERSATIONS = [conversation(number) for number in range(60)]
SIZES = {
    "evaluation": SplitSize(tokens=100),
    "calibration": SplitSize(conversations=5),
    "teacher": SplitSize(tokens=150),
}


def test_sizes_are_reached_and_not_overshot_by_more_than_a_row() -> None:
    splits = make_splits(CONVERSATIONS, TOKENIZER, SIZES, 512, 1)
    assert len(splits["calibration"]) == 5
    for name, tokens in (("evaluation", 100), ("teacher", 150)):
        counted = sum(sum(row.content[1:]) for row in splits[name])
        assert counted == splits[name].n_predicted
        assert tokens <= counted < tokens + splits[name][-1].n_predicted
    assert splits.counts["read"] == 60
    assert splits.counts["used"] == sum(map(len, splits.values()))


def test_no_conversation_is_used_twice() -> None:
    copies = [conversation(100 + n, f"  QUESTION\n {n} ", reply="ｙｅｓ") for n in range(60)]
    splits = make_splits(
        [*CONVERSATIONS, *copies], TOKENIZER, {**SIZES, "rest": SplitSize(tokens=500)}, 512, 1
    )
    assert splits.counts["duplicates"] == 60
    assert overlap(splits) == []
    assert overlap({**splits, "again": splits["calibration"]}) == sorted(
        content_hashes([splits["calibration"]])
    )


def test_conversations_equal_after_truncation_are_duplicates() -> None:
    long = [conversation(n, "same start " * 20 + str(n)) for n in range(3)]
    splits = make_splits([*long, *CONVERSATIONS], TOKENIZER, {"all": SplitSize(conversations=61)}, 150, 1)
    assert splits.counts["duplicates"] == 2
    assert overlap(splits) == []


def test_the_sources_order_does_not_matter_but_the_seed_does() -> None:
    def digests(conversations: list[Conversation], seed: int) -> list[str]:
        return [
            dataset.digest() for dataset in make_splits(conversations, TOKENIZER, SIZES, 512, seed).values()
        ]

    assert digests(CONVERSATIONS, 1) == digests(CONVERSATIONS[::-1], 1)
    assert digests(CONVERSATIONS, 1) != digests(CONVERSATIONS, 2)


def test_a_second_source_leaves_out_what_the_first_has() -> None:
    first = make_splits(CONVERSATIONS[:40], TOKENIZER, {"train": SplitSize(conversations=40)}, 512, 1)
    taken = content_hashes(first.values())
    second = make_splits(
        CONVERSATIONS[20:], TOKENIZER, {"test": SplitSize(conversations=20)}, 512, 1, exclude=taken
    )
    assert second.counts["excluded"] == 20
    assert overlap({**first, **second}) == []


def test_conversations_without_content_left_are_counted() -> None:
    system = Conversation(
        "s", (Message("system", "long " * 50), Message("user", "a"), Message("assistant", "b"))
    )
    splits = make_splits([system, *CONVERSATIONS], TOKENIZER, {"all": SplitSize(conversations=60)}, 120, 1)
    assert splits.counts["without_content"] == 1


def test_a_source_that_runs_out_says_what_was_asked_and_found() -> None:
    with pytest.raises(
        StudyError, match=r"split 'teacher': 5,000 predicted content tokens asked, [\d,]+ tokens in 60"
    ):
        make_splits(CONVERSATIONS, TOKENIZER, {"teacher": SplitSize(tokens=5000)}, 512, 1)


def test_only_as_many_conversations_are_tokenised_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from compression_assets.text import splits as module

    rendered = []
    real = module.render
    monkeypatch.setattr(module, "render", lambda *args: rendered.append(1) or real(*args))
    made = make_splits(CONVERSATIONS, TOKENIZER, SIZES, 512, 1)
    assert len(rendered) == sum(map(len, made.values()))


def test_a_refused_conversation_is_named() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(StudyError, match="conversation '0'"):
        make_splits(CONVERSATIONS[:1], tokenizer, SIZES, 512, 1)


def test_hash_ignores_system_messages_case_and_white_space() -> None:
    plain = conversation(1, "Hello  there")
    system = Conversation("x", (Message("system", "be nice"), *conversation(1, "hello\nTHERE").messages))
    assert (
        conversation_hash(plain)
        == conversation_hash(system)
        != conversation_hash(conversation(1, "hello there!"))
    )


@pytest.mark.parametrize("fields", [{}, {"tokens": 5, "conversations": 5}, {"tokens": 0}, {"token": 5}])
def test_a_size_is_either_tokens_or_conversations(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        SplitSize(**fields)


def test_overlap_sees_equal_tokens_under_different_ids() -> None:
    row = make_splits(CONVERSATIONS, TOKENIZER, SIZES, 512, 1)["calibration"][0]
    renamed = type(row)("another id", row.input_ids, row.content)
    assert len(overlap({"a": TokenDataset([row]), "b": TokenDataset([renamed])})) == 1
