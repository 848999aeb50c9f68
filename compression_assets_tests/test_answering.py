"""Model directories that answer questions: prompts, ends, limits, empty answers, and the true 4-bit forward pass."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from compression_assets.errors import StudyError
from compression_assets.evaluation.answering import _answer, answer_questions
from compression_assets.evaluation.four_bit import compare_with_four_bit
from compression_assets.evaluation.generation import Generated
from compression_assets.evaluation.prompts import INSTRUCTION, prompt_tokens, question_prompt, stop_tokens
from compression_assets.evaluation.settings import AnswerSettings
from compression_assets.sources.tokenizer_setup import prepare
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.text.chat_template import ChatTemplate
from compression_assets.text.questions import Question
from compression_assets.weights.checkpoints import load_for_scoring
from compression_assets_tests.tiny_models import tiny_directory, tiny_model

QUESTIONS = [
    Question("a", "Mill", "The mill ground rye and barley.", "What was ground?", ("rye and barley",)),
    Question("b", "Mill", "The mill ground rye and barley.", "Where?", ("The mill",)),
    Question("c", "Bee", "A bee <|im_end|> flies.", "What flies?", ("A bee", "bee")),
]
SETTINGS = AnswerSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("answering") / "tiny")


def test_a_model_answers_every_question(model_dir: Path) -> None:
    answered = answer_questions(model_dir, QUESTIONS, SETTINGS, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    assert [one.id for one in answered.answers] == ["a", "b", "c"]
    for answer, question in zip(answered.answers, QUESTIONS, strict=True):
        assert answer.expected == question.answers
        assert answer.prompt == question_prompt(ChatTemplate(tokenizer), question.question, question.context)
        assert answer.n_tokens <= 6 and (answer.finished or answer.n_tokens == 6)
        assert INSTRUCTION not in answer.answer
    rows = {row.metric: row for row in answered.rows()}
    timed = {"tokens_per_second", "prompt_tokens_per_second", "time_to_first_token"}
    assert set(rows) == {*timed, "answers_finished"}
    assert all("bfloat16 weights; attention grouped; cpu" in rows[name].note for name in timed)
    assert rows["answers_finished"].value == sum(one.finished for one in answered.answers) / 3
    first = answer_questions(model_dir, QUESTIONS, SETTINGS.model_copy(update={"questions": 1}), seed=0)
    assert [one.answer for one in first.answers] == [answered.answers[0].answer]


def test_a_model_that_says_nothing_gives_empty_answers(tmp_path: Path) -> None:
    silent = tiny_model(tie_word_embeddings=False, eos_token_id=0)
    with torch.no_grad():
        silent.lm_head.weight.zero_()  # every token is as likely as the first, which ends an answer
    directory = tiny_directory(tmp_path / "silent", tie_word_embeddings=False, eos_token_id=0)
    silent.to(torch.bfloat16).save_pretrained(directory)
    answered = answer_questions(directory, QUESTIONS, SETTINGS, seed=0)
    assert [(one.answer, one.n_tokens, one.finished) for one in answered.answers] == [("", 1, True)] * 3


def test_the_prompt_is_the_papers_in_the_models_own_template(model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompt = question_prompt(ChatTemplate(tokenizer), "What flies?", "A bee <|im_end|> flies.")
    assert prompt.endswith(
        f"<|im_start|>user\n{INSTRUCTION}.\n\nContext: A bee < |im_end|> flies.\n\nQuestion: What flies?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer.chat_template = None
    plain = question_prompt(ChatTemplate(tokenizer), "Q?", "C.")
    assert plain == f"user:\n{INSTRUCTION}.\n\nContext: C.\n\nQuestion: Q?<|im_end|>\nassistant:\n"


def test_an_end_that_no_token_spells_is_cut_from_an_answer(model_dir: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n[END]\n' }}{% endfor %}"
    )
    template = ChatTemplate(tokenizer)
    assert template.end_token() is None
    notes = prepare(tokenizer, tiny_model(), tmp_path)
    assert any(r"ends an answer with the text '\n[END]'" in note for note in notes)
    for said, answer, finished in (
        ("a bee\n[END]\nuser: and", "a bee", True),
        ("a bee [END] is", "a bee [END] is", False),
    ):
        new = Generated(tuple(prompt_tokens(template, said)), finished=False)
        found = _answer(QUESTIONS[0], "?", new, template)
        assert (found.answer, found.finished, found.n_tokens) == (answer, finished, len(new.tokens))


def test_the_chats_end_of_turn_ends_an_answer_even_if_no_config_names_it(model_dir: Path) -> None:
    model = tiny_model(eos_token_id=None)
    model.generation_config.eos_token_id = [3, 4]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.eos_token = "<|endoftext|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_tokens(ChatTemplate(tokenizer), model) == {3, 4, tokenizer.eos_token_id, end}


def test_what_cannot_be_asked_is_refused_in_a_sentence(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="asks for 4 questions, but the question set has 3"):
        answer_questions(model_dir, QUESTIONS, AnswerSettings(questions=4), seed=0)
    short = tiny_directory(tmp_path / "short", max_position_embeddings=200)
    with pytest.raises(StudyError, match=r"question 'a' takes \d+ tokens .* but the model reads 200"):
        answer_questions(short, QUESTIONS, SETTINGS, seed=0)


def test_a_quantized_model_is_compared_with_its_true_4_bit_form(model_dir: Path, tmp_path: Path) -> None:
    quantize_checkpoint(model_dir, tmp_path / "q", QuantizationRecipe(), "cpu")
    answered = answer_questions(tmp_path / "q", QUESTIONS, SETTINGS, seed=0)
    assert answered.four_bit is not None and answered.four_bit.positions == 3 * 64
    assert 0.99 < (answered.four_bit.logit_cosine or 0) <= 1
    assert (answered.four_bit.top_1 or 0) > 0.9
    # The comparison notices a model that is not the same one.
    changed = load_for_scoring(tmp_path / "q", "cpu", torch.bfloat16)
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight.mul_(-1)
    other = compare_with_four_bit(changed, tmp_path / "q", [list(range(100))], "cpu")
    assert (other.logit_cosine or 0) < 0.97
    assert answered.four_bit.check().passed and not other.check().passed


def test_where_the_4_bit_kernels_cannot_run_the_rows_say_so(tmp_path: Path) -> None:
    narrow = tiny_directory(tmp_path / "narrow", intermediate_size=100)
    quantize_checkpoint(narrow, tmp_path / "q", QuantizationRecipe(), "cpu")
    rows = {row.metric: row for row in answer_questions(tmp_path / "q", QUESTIONS, SETTINGS, seed=0).rows()}
    assert rows["four_bit_top_1"].value is None
    assert "kernels of this CPU cannot run" in rows["four_bit_top_1"].note
    with pytest.raises(StudyError, match="is not a model directory"):
        answer_questions(tmp_path, QUESTIONS, SETTINGS, seed=0)
