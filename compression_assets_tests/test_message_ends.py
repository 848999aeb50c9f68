"""What ends a message is found in any template, learnt by training, measured, and stopped at."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from compression_assets.evaluation.end_of_turn import end_of_turn, unlearned
from compression_assets.evaluation.generation import generate
from compression_assets.evaluation.perplexity import score
from compression_assets.evaluation.prompts import prompt_tokens, stop_tokens
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.sources.tokenizer_setup import prepare
from compression_assets.study.names import relative_directory
from compression_assets.text.chat import render
from compression_assets.text.chat_template import ChatTemplate
from compression_assets.text.conversation import Message
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.training.finetuning import finetune
from compression_assets_tests.chat_templates import FAMILIES, Family
from compression_assets_tests.training_helpers import recipe_of

ANSWER = "aye"


def chat(*contents: str) -> list[Message]:
    return [Message(role, text) for role, text in zip(itertools.cycle(["user", "assistant"]), contents)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def tiny(template: ChatTemplate) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(template.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=template.tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def measured(model: PreTrainedModel, rows: list[TokenRow], batch_size: int) -> tuple[MetricRow, list[Sample]]:
    dataset = TokenDataset(rows)
    return end_of_turn(dataset, score(model, dataset, batch_size).ends)


def test_every_messages_end_is_found_and_no_header(family: Family) -> None:
    template = ChatTemplate(family.tokenizer())
    contents = ["where to?", "meadow", "and then?", "a b.", "aye?", "aye"]
    rendered = render(template, chat(*contents), 10_000)
    row = TokenRow("r", *rendered)

    def text(places: list[int]) -> str:
        tokens = template.tokenizer.convert_ids_to_tokens([row.input_ids[place] for place in places])
        return "".join(tokens).replace("▁", " ").replace("Ġ", " ")

    assert [text(places) for places in row.message_ends] == [family.user_end, family.answer_end] * 3
    # What is trained is contents and their ends, and nothing between.
    trained = text([place for place, flag in enumerate(row.trained) if flag])
    expected = "".join(map("".join, zip(contents, [family.user_end, family.answer_end] * 3, strict=True)))
    assert trained.replace(" ", "") == expected.replace(" ", "")


def test_system_messages_are_not_trained_nor_their_ends() -> None:
    template = ChatTemplate(FAMILIES["ChatML"].tokenizer())
    row = TokenRow("r", *render(template, [Message("system", "obey"), *chat("hi", "ho")], 10_000))
    kept = [token for token, flag in zip(row.input_ids, row.trained, strict=True) if flag]
    assert template.tokenizer.decode(kept) == "hi<|im_end|>ho<|im_end|>"


def test_the_trained_model_ends_its_answer_and_one_trained_on_content_alone_does_not(family: Family) -> None:
    template = ChatTemplate(family.tokenizer())
    rows = [
        TokenRow(question, *render(template, chat(question, ANSWER), 10_000))
        for question in ("where?", "who?", "what?", "when?")
    ]
    content_alone = [TokenRow(row.id, row.input_ids, row.content) for row in rows]
    prompt = prompt_tokens(template, template.text(chat("where?"), reply=True))
    answers, ends = [], []
    for dataset in map(TokenDataset, (rows, content_alone)):
        model = tiny(template)
        finetune(model, dataset, recipe_of(epochs=40, learning_rate=1e-2, warmup_steps=2), seed=0)
        answers.append(generate(model, [prompt], stop_tokens(template, model), 16)[0])
        ends.append(measured(model, rows, 2)[0].value)
    assert answers[0].finished
    assert template.tokenizer.decode(answers[0].tokens, skip_special_tokens=True).strip() == ANSWER
    assert not answers[1].finished
    assert ends[0] > 0.5 > 0.05 > ends[1]
    assert unlearned({"base": ends[0], "trained": ends[1]}, "base") == {"trained": ends[1]}


def test_end_of_turn_is_the_mean_probability_of_all_that_ends_a_message(family: Family) -> None:
    template = ChatTemplate(family.tokenizer())
    model = tiny(template)
    rows = [TokenRow(str(n), *render(template, chat("x" * n, ANSWER), 10_000)) for n in (1, 9, 4)]
    row, samples = measured(model, rows, batch_size=2)
    expected = []
    for one in rows:
        with torch.no_grad():
            p = model(input_ids=torch.tensor([one.input_ids])).logits[0].double().softmax(-1)
        expected.append(
            [math.prod(float(p[t - 1, one.input_ids[t]]) for t in end) for end in one.message_ends]
        )
    assert row.value == pytest.approx(sum(map(sum, expected)) / 6, rel=1e-4)
    assert [(sample.item, sample.weight) for sample in samples] == [("1", 2), ("9", 2), ("4", 2)]
    assert [sample.value for sample in samples] == pytest.approx([sum(one) for one in expected], rel=1e-4)


def test_a_template_without_ends_is_not_measured_and_says_so() -> None:
    tokenizer = FAMILIES["ChatML"].tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}"
    )
    template = ChatTemplate(tokenizer)
    row = TokenRow("r", *render(template, chat("hi", "ho"), 10_000))
    assert row.ends == []
    found, samples = measured(tiny(template), [row], 1)
    assert (found.value, samples) == (None, []) and "nothing of its own" in found.note


def test_a_header_at_which_the_model_stops_ends_the_message_before_it() -> None:
    """GLM-4 writes nothing after an answer; the model stops at the next header's "<|user|>"."""
    tokenizer = FAMILIES["Phi-3"].tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    )
    stop = tokenizer.convert_tokens_to_ids("<|user|>")
    row = TokenRow("r", *render(ChatTemplate(tokenizer, ends=[stop]), chat("a", "b", "c", "d"), 10_000))
    assert [row.input_ids[place] for place in row.ends] == [stop]
    assert TokenRow("r", *render(ChatTemplate(tokenizer), chat("a", "b", "c", "d"), 10_000)).ends == []


def test_generation_stops_at_what_training_teaches_even_if_no_config_names_it(tmp_path: Path) -> None:
    template = ChatTemplate(FAMILIES["Llama-3"].tokenizer())
    model = tiny(template)
    end = template.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert stop_tokens(template, model) == {template.tokenizer.eos_token_id, end}
    notes = prepare(template.tokenizer, model, tmp_path)
    assert model.generation_config.eos_token_id == [template.tokenizer.eos_token_id, end]
    assert any("stops at '<|eot_id|>' as well" in note for note in notes)
    assert not any("stops at" in note for note in prepare(template.tokenizer, model, tmp_path))


def test_ends_come_back_from_disk_and_count_in_the_digest(tmp_path: Path) -> None:
    ends = TokenDataset([TokenRow("r", [1, 2, 3], [False, True, False], [2])])
    assert ends.digest() != TokenDataset([TokenRow("r", [1, 2, 3], [False, True, False])]).digest()
    ends.save(tmp_path)
    again = TokenDataset.load(tmp_path)
    assert again.rows == ends.rows
    assert (again.n_predicted, again.n_trained) == (1, 2)
    with pytest.raises(ValueError, match="content and ends a message"):
        TokenRow("r", [1, 2], [False, True], [1])


def test_the_first_word_after_the_templates_space_is_content() -> None:
    template = ChatTemplate(FAMILIES["Mistral"].tokenizer())
    rendered = render(template, chat("meadow", "aye"), 10_000)
    tokens = template.tokenizer.convert_ids_to_tokens(rendered.ids)
    assert [token for token, flag in zip(tokens, rendered.content, strict=True) if flag] == [
        "▁meadow",
        "▁aye",
    ]


def test_saved_tokenizers_render_alike(family: Family, tmp_path: Path) -> None:
    family.tokenizer().save_pretrained(tmp_path)
    saved, made = ChatTemplate(AutoTokenizer.from_pretrained(tmp_path)), ChatTemplate(family.tokenizer())
    assert render(saved, chat("where?", "aye"), 100) == render(made, chat("where?", "aye"), 100)


def test_the_leaderboard_warns_of_models_that_run_on(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from compression_assets.evaluation.measured import write_measured
    from compression_assets.graph.assets.leaderboard import _ends_its_turns
    from compression_assets.store.artifact_store import ArtifactStore
    from compression_assets.study.files import load_study
    from compression_assets.study.leaderboard_models import leaderboard_models

    study = load_study("smoke")
    storage = SimpleNamespace(artifacts=ArtifactStore(tmp_path))
    assert _ends_its_turns(study, storage).passed
    measured = {model.key: model for model in leaderboard_models(study)}
    for key, value in (("base", 0.2), ("q", 0.11), ("kd", 0.09)):
        directory = tmp_path / relative_directory(measured[key].asset("metrics"))
        row = MetricRow("end_of_turn", value, "0..1", 10, higher_is_better=True)
        write_measured(directory, [row], [])
    check = _ends_its_turns(study, storage)
    assert not check.passed
    assert check.metadata["detail"].text == (
        "end_of_turn below half of the base's: kd 0.0900; the base's is 0.2000"
    )
