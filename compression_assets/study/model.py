"""What a study is: the strict model of a study file, and loading one.

Belongs here: the keys of a study file and what must hold between them. Not here: how YAML is read
(`plain_yaml.py`), how an error becomes a sentence (`sentences.py`), the recipes and sources themselves.
Every preset in `studies/` is an example; `smoke.yaml` is the shortest.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from math import lcm
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines.settings import ServedSettings
from compression_assets.evaluation.settings import StudyEvaluation
from compression_assets.sources.models import ModelSource
from compression_assets.sources.settings import Data
from compression_assets.strict import Strict, near_match
from compression_assets.study.goal import Goal, unknown_metric
from compression_assets.study.names import TEACHER_LOGITS
from compression_assets.study.orderings import (
    BASE,
    DEQUANTIZATION,
    Node,
    Ordering,
    StepPath,
    parse_ordering,
    parse_orderings,
    prefix_tree,
    quantized_by,
    recipe_token,
    technique_of,
)
from compression_assets.study.recipes import read_recipes
from compression_assets.study.search import Search
from compression_assets.study.sentences import failure
from compression_assets.study.sweeps import Sweep, expanded
from compression_assets.study.tracking import Tracking
from compression_assets.techniques.registry import technique
from compression_assets.techniques.technique import Reads
from compression_assets.training.finetuning import FinetuneRecipe
from compression_assets.training.sharing import TrainingDevices, shared
from compression_assets.training.teacher.teacher_logits import TeacherLogitsRecipe, coding_doubt
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.gguf_types import second_rounding
from compression_assets.weights.formats.grouped_integer import Int4

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")


class ModelTeacher(Strict):
    """Another model teaches as it is. (`teacher_logits.load_in_8bit` runs it in 8 bit, as the paper does.)"""

    kind: Literal["model"]
    source: ModelSource


class CorrectedTeacher(Strict):
    """The base model, fine-tuned on a slice of the chat data of its own, teaches.

    Teacher correction as in Minitron (arXiv 2408.11796, section 3): a student never distils from itself.
    """

    kind: Literal["corrected"]
    finetune: FinetuneRecipe = FinetuneRecipe()


Teacher = Annotated[ModelTeacher | CorrectedTeacher, Field(discriminator="kind")]


class ExternalModel(Strict):
    """A model that somebody else made, to be measured beside the study's own: the row `external_<name>`."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    source: ModelSource


class Study(Strict):
    """One study: a base model, the data, a recipe for each technique, and the orderings to compare.

    name: directory of everything the study writes, storage/<name>. recipes: step token -> recipe, the file's key
    `techniques`; a variant ("Q:stochastic") lists only what differs from its technique's plain entry. orderings:
    as written; the base is always measured. seeds: every ordering is made once with each of them, `seed` among them;
    data and teacher are those of `seed`, so that what differs is the steps. sweep: see `Sweep`. goal: which model the
    study is after; it decides what the report recommends, and changes no measurement. search: what `compression search`
    may try; nothing else reads it. tracking: where else figures go.
    Raises pydantic.ValidationError; use `load_study` for sentences.
    """

    name: str
    description: str = Field(default="", max_length=1000)
    seed: int = Field(ge=0, lt=2**32)
    seeds: tuple[Annotated[int, Field(ge=0, lt=10**9)], ...] = ()
    base_model: ModelSource
    teacher: Teacher | None = None
    data: Data
    recipes: dict[str, SerializeAsAny[Strict]] = Field(alias="techniques")
    teacher_logits: TeacherLogitsRecipe = TeacherLogitsRecipe()
    training: TrainingDevices = TrainingDevices()
    orderings: tuple[str, ...] = Field(min_length=1)
    sweep: tuple[Sweep, ...] = ()
    evaluation: StudyEvaluation = StudyEvaluation()
    goal: Goal = Goal()
    search: Search = Search()
    external_models: tuple[ExternalModel, ...] = ()
    tracking: Tracking | None = None

    @field_validator("name")
    @classmethod
    def _name_is_a_directory(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name[:60]!r} cannot name a directory; write up to 48 small letters, digits and '_', a letter first"
            )
        return name

    @field_validator("recipes", mode="plain")
    @classmethod
    def _known_recipes(cls, entries: Any) -> dict[str, Strict]:
        return read_recipes(entries)

    @model_validator(mode="before")
    @classmethod
    def _write_sweeps_out(cls, data: Any) -> Any:
        return expanded(data)

    @field_validator("external_models")
    @classmethod
    def _names_of_their_own(cls, models: tuple[ExternalModel, ...]) -> tuple[ExternalModel, ...]:
        names = [model.name for model in models]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two models are called {twice!r}: give each a name of its own")
        return models

    @model_validator(mode="after")
    def _seeds_repeat_the_seed(self) -> Self:
        if self.seeds and self.seed not in self.seeds:
            raise failure(
                ("seeds",), f"must have {self.seed} in it, the study's seed, whose models have plain names"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise failure(("seeds",), "must be different")
        return self

    @model_validator(mode="after")
    def _answers_have_questions(self) -> Self:
        answers, asked = self.evaluation.answers, self.data.questions
        if answers is None:
            return self
        if asked is None:
            raise failure(("data", "questions"), "is missing, and evaluation.answers wants questions to ask")
        if (answers.questions or 0) > asked.count:
            raise failure(
                ("evaluation", "answers", "questions"),
                f"is more than the {asked.count} of data.questions.count",
            )
        return self

    @model_validator(mode="after")
    def _goal_names_metrics(self) -> Self:
        if wrong := unknown_metric(self.goal.metrics, tasks=self.evaluation.harness is not None):
            raise failure(("goal",), f"cannot be read: {wrong}")
        return self

    @model_validator(mode="after")
    def _orderings_can_run(self) -> Self:
        for index, text in enumerate(self.orderings):
            try:
                ordering = parse_ordering(text, variants=self.recipes)
            except StudyError as error:
                raise failure(("orderings", index), f"cannot run: {error}") from None
            if ordering.seed == self.seed:
                raise failure(("orderings", index), f"names the study's own seed {self.seed}: leave it out")
            self._refuse_missing_inputs(ordering)
            self._refuse_missing_models(ordering, index)
        try:
            parse_orderings(self._texts(), variants=self.recipes)
        except StudyError as error:
            raise failure(("orderings",), f"must be different: {error}") from None
        if self.teacher_logits.coding not in ("dense", "hidden") and len(self._temperatures()) > 1:
            raise failure(
                ("teacher_logits", "coding"),
                f"'{self.teacher_logits.coding}' serves one temperature, and the recipes have "
                f"{', '.join(map(str, self._temperatures()))}; write 'hidden' or 'dense'",
            )
        return self

    @model_validator(mode="after")
    def _served_models_can_be_made(self) -> Self:
        for index, served in enumerate(self.evaluation.serving):
            place = ("evaluation", "serving", index)
            try:
                ordering = parse_ordering(served.model, variants=self.recipes)
                self._refuse_missing_inputs(ordering)
                for length in range(1, len(ordering.path) + 1):
                    self.models_read(ordering.path[:length])
            except StudyError as error:
                raise failure((*place, "model"), f"cannot be made: {error}") from None
            if reason := self._not_served(served, ordering):
                raise failure(place, reason)
        names = [(ordering.path, served.form) for served, ordering in self.served]
        if len(set(names)) < len(names):
            raise failure(("evaluation", "serving"), "has the same model in the same form twice")
        return self

    def _not_served(self, served: ServedSettings, ordering: Ordering) -> str:
        """Why a model does not go into the form that it is to be served in; "" if it does."""
        token = quantized_by(ordering.path)
        stored = BF16() if token is None else technique(technique_of(token)).leaves(self._as_written(token))
        if served.importance and self.data.splits.calibration is None:
            return (
                "asks for importance, which is measured on the calibration set: add data.splits.calibration"
            )
        if served.format == "w4a16" and not isinstance(stored, Int4):
            return f"asks for w4a16, which is int4, and {ordering.text} ends in {stored.title}: add a Q with kind: int4"
        if served.gguf is None:
            return ""
        return second_rounding(ordering.text, stored, served.gguf.kind, "")

    @cached_property
    def served(self) -> tuple[tuple[ServedSettings, Ordering], ...]:
        """What engines serve, each with the ordering that makes its model."""
        return tuple(
            (served, parse_ordering(served.model, variants=self.recipes))
            for served in self.evaluation.serving
        )

    @model_validator(mode="after")
    def _trainings_can_be_shared(self) -> Self:
        corrected = self.teacher.finetune if isinstance(self.teacher, CorrectedTeacher) else None
        try:
            what = "the teacher's correction"
            if self.distils and corrected is not None:
                shared(corrected, self.training.gpus)
            for what in sorted({recipe_token(node.step) for node in self.nodes.values() if node.step}):
                self.gpus_of(what)
        except StudyError as error:
            raise failure(("training", "gpus"), f"is not for {what}: {error}") from None
        return self

    def _refuse_missing_inputs(self, ordering: Ordering) -> None:
        for token in ordering.path:
            why = f"is missing, and {token} in ordering '{ordering.text}' needs it"
            if TEACHER_LOGITS in self.inputs_of(token) and self.teacher is None:
                raise failure(("teacher",), why)
            for split in self._splits_read(token):
                if getattr(self.data.splits, split) is None:
                    raise failure(("data", "splits", split), why)

    def _refuse_missing_models(self, ordering: Ordering, index: int) -> None:
        for length, token in enumerate(ordering.path, start=1):
            try:
                self.models_read(ordering.path[:length])
            except StudyError as error:
                raise failure(("orderings", index), f"cannot run {token}: {error}") from None

    def _splits_read(self, token: str) -> list[str]:
        splits = [name.removesuffix("_set") for name in self.inputs_of(token) if name != TEACHER_LOGITS]
        corrected = TEACHER_LOGITS in self.inputs_of(token) and isinstance(self.teacher, CorrectedTeacher)
        return splits + ["teacher"] * corrected

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy without what was computed of the original: pydantic copies cached properties like fields."""
        copy = super().model_copy(update=update, deep=deep)
        for name in copy.__dict__.keys() - type(copy).model_fields.keys():
            del copy.__dict__[name]
        return copy

    @cached_property
    def parsed_orderings(self) -> tuple[Ordering, ...]:
        """The base first, then the orderings as listed, then the same with each further seed."""
        return parse_orderings(self._texts(), variants=self.recipes)

    def _texts(self) -> list[str]:
        """Orderings as written, and again with every seed but the study's own."""
        repeated = [text for text in self.orderings if "@" not in text and text.strip().lower() != BASE]
        others = [seed for seed in self.seeds if seed != self.seed]
        return [*self.orderings, *(f"{text}@{seed}" for seed in others for text in repeated)]

    @cached_property
    def nodes(self) -> dict[StepPath, Node]:
        """Every model that the orderings and what is served need, by path, parents first."""
        return prefix_tree(self.parsed_orderings, further=[ordering for _, ordering in self.served])

    @cached_property
    def inputs(self) -> frozenset[str]:
        """Data assets that some step reads, such as "calibration_set" and "teacher_logits"."""
        tokens = {node.step for node in self.nodes.values() if node.step}
        return frozenset(name for token in tokens for name in self.inputs_of(token))

    @property
    def distils(self) -> bool:
        """Whether any step reads the teacher's logits."""
        return TEACHER_LOGITS in self.inputs

    @cached_property
    def distillation_temperature(self) -> float:
        """The temperature at which students distil; the plain recipe's where `coding: dense` serves several."""
        return self._temperatures()[0]

    @property
    def warnings(self) -> list[str]:
        """What can run and is hardly meant, a sentence each."""
        if not self.distils:
            return []
        found = (coding_doubt(self.teacher_logits, temperature) for temperature in self._temperatures())
        return [sentence for sentence in found if sentence]

    def recipe(self, token: str) -> Any:
        """The recipe of a step token, an instance of its technique's Recipe. StudyError if the study has none."""
        return technique(technique_of(token)).settled(self._as_written(token), self.row_multiple)

    def _as_written(self, token: str) -> Any:
        """The same with what it leaves to the study left out."""
        token = recipe_token(token)
        if token in self.recipes:
            return self.recipes[token]
        if token == DEQUANTIZATION:
            return technique(DEQUANTIZATION).Recipe()
        raise StudyError(f"study {self.name} has no recipe for {token}: {near_match(token, self.recipes)}")

    @cached_property
    def row_multiple(self) -> int:
        """Of which the inputs of linear layers are a multiple where kernels take them whole.

        For the number formats that the orderings end in and those that are served.
        """
        used = {recipe_token(node.step) for node in self.nodes.values() if node.step}
        stored = [
            technique(technique_of(token)).leaves(self._as_written(token)).row_multiple for token in used
        ]
        served = [one.gguf.row_multiple for one, _ in self.served if one.gguf is not None]
        return lcm(*stored, *served)

    def inputs_of(self, token: str) -> tuple[str, ...]:
        """Data assets that a step reads."""
        return self._reads(token).data

    def gpus_of(self, token: str) -> int:
        """GPUs that a step has on a machine with CUDA."""
        return technique(technique_of(token)).gpus(self._as_written(token), self.training.gpus)

    def models_read(self, path: StepPath) -> dict[str, StepPath]:
        """What the last step of a path reads besides its parent: its technique's name for it -> path of the model.

        Raises StudyError where the path has no such model before the step.
        """
        before = [technique(technique_of(token)) for token in path[:-1]]
        wanted = self._reads(path[-1]).models if path else {}
        return {name: path[: which(before)] for name, which in wanted.items()}

    def _reads(self, token: str) -> Reads:
        return technique(technique_of(token)).reads(self._as_written(token))

    def _temperatures(self) -> list[float]:
        used = {
            recipe_token(node.step)
            for node in self.nodes.values()
            if node.step and TEACHER_LOGITS in self.inputs_of(node.step)
        }
        return list(
            dict.fromkeys(float(self.recipe(token).temperature) for token in self.recipes if token in used)
        )
