"""Splits are disjoint, deterministic and as large as asked."""

import pytest
from pydantic import ValidationError
from tokenizers import AddedToken
from tokenizers.normalizers import NFKC

from compression_assets.errors import StudyError
from compression_assets.sources.random_model import byte_tokenizer
from compression_assets.text.chat_template import ChatTemplate
from compression_assets.text.conversation import Conversation, Message
from compression_assets.text.datasets import TokenDataset
from compression_assets.text.splits import SplitSize, content_hashes, conversation_hash, make_splits, overlap

TEMPLATE = ChatTemplate(byte_tokenizer())


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
    splits = make_splits(CONVERSATIONS, TEMPLATE, SIZES, 512, 1)
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
        [*CONVERSATIONS, *copies], TEMPLATE, {**SIZES, "rest": SplitSize(tokens=500)}, 512, 1
    )
    assert splits.counts["duplicates"] == 60
    assert overlap(splits) == []
    assert overlap({**splits, "again": splits["calibration"]}) == sorted(
        content_hashes([splits["calibration"]])
    )


def test_conversations_equal_after_truncation_are_duplicates() -> None:
    long = [conversation(n, "same start " * 20 + str(n)) for n in range(3)]
    splits = make_splits([*long, *CONVERSATIONS], TEMPLATE, {"all": SplitSize(conversations=61)}, 150, 1)
    assert splits.counts["duplicates"] == 2
    assert overlap(splits) == []


def test_the_sources_order_does_not_matter_but_the_seed_does() -> None:
    def digests(conversations: list[Conversation], seed: int) -> list[str]:
        return [
            dataset.digest() for dataset in make_splits(conversations, TEMPLATE, SIZES, 512, seed).values()
        ]

    assert digests(CONVERSATIONS, 1) == digests(CONVERSATIONS[::-1], 1)
    assert digests(CONVERSATIONS, 1) != digests(CONVERSATIONS, 2)


def test_a_second_source_leaves_out_what_the_first_has() -> None:
    first = make_splits(CONVERSATIONS[:40], TEMPLATE, {"train": SplitSize(conversations=40)}, 512, 1)
    taken = content_hashes(first.values())
    second = make_splits(
        CONVERSATIONS[20:], TEMPLATE, {"test": SplitSize(conversations=20)}, 512, 1, exclude=taken
    )
    assert second.counts["excluded"] == 20
    assert overlap({**first, **second}) == []


def test_conversations_without_content_left_are_counted() -> None:
    system = Conversation(
        "s", (Message("system", "long " * 50), Message("user", "a"), Message("assistant", "b"))
    )
    splits = make_splits([system, *CONVERSATIONS], TEMPLATE, {"all": SplitSize(conversations=60)}, 120, 1)
    assert splits.counts["without_content"] == 1


def test_a_source_that_runs_out_says_what_was_asked_and_found() -> None:
    with pytest.raises(
        StudyError, match=r"split 'teacher': 5,000 predicted content tokens asked, [\d,]+ tokens in 60"
    ):
        make_splits(CONVERSATIONS, TEMPLATE, {"teacher": SplitSize(tokens=5000)}, 512, 1)


def test_only_as_many_conversations_are_tokenised_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from compression_assets.text import splits as module

    rendered = []
    real = module.render
    monkeypatch.setattr(module, "render", lambda *args: rendered.append(1) or real(*args))
    made = make_splits(CONVERSATIONS, TEMPLATE, SIZES, 512, 1)
    assert len(rendered) == sum(map(len, made.values()))


REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
)


def refusing() -> ChatTemplate:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = REFUSES_SYSTEM
    return ChatTemplate(tokenizer)


def with_system(number: int) -> Conversation:
    messages = (Message("system", "obey"), *conversation(number).messages)
    return Conversation(str(number), messages, f"chat.jsonl, line {number + 1}")


@pytest.mark.parametrize("seed", range(5))
def test_refused_conversations_are_left_out_counted_and_named_whatever_is_drawn(seed: int) -> None:
    source = [*CONVERSATIONS[:9], with_system(9), *CONVERSATIONS[10:59], with_system(59)]
    splits = make_splits(source, refusing(), {"all": SplitSize(conversations=5)}, 512, seed, max_refused=0.05)
    assert splits.counts["refused"] == 2
    assert [one["id"] for one in splits.refusals.about()] == ["9", "59"]
    assert splits.refusals.about()[0]["where"] == "chat.jsonl, line 10"
    assert "no system role" in splits.refusals.about()[0]["reason"]
    with pytest.raises(
        StudyError, match=r"2 of 60 .* refused, more than the 3%.*chat.jsonl, line 10: .*no system"
    ):
        make_splits(source, refusing(), {"all": SplitSize(conversations=5)}, 512, seed, max_refused=0.03)


def test_a_template_that_refuses_everything_is_an_error_even_if_all_may_be_refused() -> None:
    source = [with_system(number) for number in range(3)]
    with pytest.raises(StudyError, match="3 of 3 conversations are refused"):
        make_splits(source, refusing(), SIZES, 512, 1, max_refused=1.0)


def test_a_message_that_a_template_changes_is_refused_alone() -> None:
    tokenizer = byte_tokenizer()
    said = "m['content'].split('</think>')[-1]"
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{{{{ m['role'] + ':' + {said} + eos_token }}}}{{% endfor %}}"
    )
    source = [*CONVERSATIONS, conversation(60, reply="<think>hm</think>yes")]
    sizes = {"all": SplitSize(conversations=60)}
    splits = make_splits(source, ChatTemplate(tokenizer), sizes, 512, 1, max_refused=0.05)
    assert [one["id"] for one in splits.refusals.about()] == ["60"]
    assert "depending on what a message says" in splits.refusals.about()[0]["reason"]


def test_content_that_turns_into_a_special_token_counts_as_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = NFKC()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("(tool)", normalized=True)]})
    source = [*CONVERSATIONS[:58], *(conversation(n, f"a ⒯ool {n} \uff08tool\uff09") for n in (58, 59))]
    sizes = {"all": SplitSize(conversations=58)}
    splits = make_splits(source, ChatTemplate(tokenizer), sizes, 512, 1, max_refused=0.05)
    assert splits.counts["refused"] == len(splits.refusals) == 2
    assert "the special token '(tool)'" in splits.refusals.about()[0]["reason"]
    with pytest.raises(StudyError, match=r"2 of 60 conversations are refused, more than the 3%"):
        make_splits(source, ChatTemplate(tokenizer), sizes, 512, 1, max_refused=0.03)
    with pytest.raises(StudyError, match=r"ran out .* 2 refused\)"):
        make_splits(source, ChatTemplate(tokenizer), {"all": SplitSize(conversations=59)}, 512, 1)


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
    row = make_splits(CONVERSATIONS, TEMPLATE, SIZES, 512, 1)["calibration"][0]
    renamed = type(row)("another id", row.input_ids, row.content)
    assert len(overlap({"a": TokenDataset([row]), "b": TokenDataset([renamed])})) == 1
