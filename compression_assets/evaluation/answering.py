"""Asking one model directory the study's questions: prompts in, answers out.

How tokens are generated belongs to `generation`, how fast to `speed`, how the quantized model itself answers to
`four_bit`.

Precision policy, as for perplexity: weights in the compute dtype, quantized ones exactly dequantized to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError
from compression_assets.evaluation.answers import Answer
from compression_assets.evaluation.four_bit import Agreement, compare_with_four_bit
from compression_assets.evaluation.generation import Generated, generate
from compression_assets.evaluation.rows import MetricRow, Sample, mean_row
from compression_assets.evaluation.settings import AnswerSettings
from compression_assets.evaluation.speed import Speed, measure_speed
from compression_assets.store.reports import Report, no_report
from compression_assets.text.chat_template import ChatTemplate, TemplateSettings, load_chat_template
from compression_assets.text.questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Answered:
    """Answers in the order of the questions. four_bit: None for a model that is not quantized."""

    answers: list[Answer]
    speed: Speed
    four_bit: Agreement | None

    def rows(self) -> list[MetricRow]:
        """The rows of `speed`, and answers_finished: the share of answers that ended by themselves.

        Of a quantized model also how far its own forward pass agrees with the weights that it answered through.
        """
        return [
            *self.speed.rows(),
            mean_row("answers_finished", self.samples(), higher_is_better=True),
            *(self.four_bit.rows() if self.four_bit else []),
        ]

    def samples(self) -> list[Sample]:
        return [Sample("answers_finished", answer.id, float(answer.finished)) for answer in self.answers]


def answer_questions(
    model_dir: Path,
    questions: Sequence[Question],
    settings: AnswerSettings,
    seed: int,
    device: str = "cpu",
    report: Report = no_report,
    template_settings: TemplateSettings | None = None,
) -> Answered:
    """Let a model directory, whoever made it, answer questions; a model that says nothing gives empty answers.

    StudyError for fewer questions than the settings ask for, and for a prompt that the model has no room for.
    """

    from compression_assets.evaluation.prompts import prompt_tokens, question_prompt, stop_tokens
    from compression_assets.machine.precision import compute_dtype
    from compression_assets.weights.checkpoints import is_quantized, load_for_scoring
    from compression_assets.weights.formats.layout import format_of

    asked = _first(questions, settings.questions)
    model = load_for_scoring(model_dir, device, compute_dtype(device))
    template = load_chat_template(model_dir, template_settings)
    prompts = [question_prompt(template, question.question, question.context) for question in asked]
    tokens = [prompt_tokens(template, prompt) for prompt in prompts]
    _refuse_too_long(model, tokens, settings.max_new_tokens, asked)
    stop = stop_tokens(template, model)
    generated = generate(
        model,
        tokens,
        stop,
        settings.max_new_tokens,
        settings.batch_size,
        settings.temperature,
        seed,
        report,
    )
    answers = [
        _answer(question, prompt, new, template)
        for question, prompt, new in zip(asked, prompts, generated, strict=True)
    ]
    speed = measure_speed(model, tokens, format_of(model_dir), device)
    four_bit = compare_with_four_bit(model, model_dir, tokens, device) if is_quantized(model_dir) else None
    return Answered(answers, speed, four_bit)


def _answer(question: Question, prompt: str, new: Generated, template: ChatTemplate) -> Answer:
    text = template.tokenizer.decode(new.tokens, skip_special_tokens=True)
    # Several tokens may spell the end, which generation does not stop at.
    end = template.end_text()
    place = text.find(end) if end else -1
    return Answer(
        id=question.id,
        question=question.question,
        context=question.context,
        expected=question.answers,
        prompt=prompt,
        answer=(text if place < 0 else text[:place]).strip(),
        n_tokens=new.n_tokens,
        finished=new.finished or place >= 0,
    )


def _first(questions: Sequence[Question], count: int | None) -> Sequence[Question]:
    if count is not None and count > len(questions):
        raise StudyError(
            f"evaluation.answers.questions asks for {count:,} questions, but the question set has {len(questions):,}: "
            "raise data.questions.count or ask for fewer."
        )
    return questions[:count]


def _refuse_too_long(
    model: "PreTrainedModel", prompts: Sequence[list[int]], new: int, questions: Sequence[Question]
) -> None:
    room = getattr(model.config, "max_position_embeddings", None)
    for prompt, question in zip(prompts, questions, strict=True):
        if room is not None and len(prompt) + new > room:
            raise StudyError(
                f"question {question.id!r} takes {len(prompt):,} tokens and its answer up to {new:,} more, but the "
                f"model reads {room:,}: lower evaluation.answers.max_new_tokens or choose shorter passages."
            )
