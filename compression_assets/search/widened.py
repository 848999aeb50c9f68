"""The study of a search: the user's study with the candidates' variants and orderings added, as one more study file.

It has the study's name and storage, so that whatever the study has made already, and every beginning that two
candidates share, is found and not made again.
"""

import math
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compression_assets.errors import StudyError
from compression_assets.search.space import Candidate, token_shares
from compression_assets.strict import Strict
from compression_assets.study.files import SHIPPED, study_of
from compression_assets.study.model import Study
from compression_assets.study.orderings import BASE, canonical_token, parse_ordering, technique_of
from compression_assets.study.plain_yaml import read_mapping, write_mapping
from compression_assets.study.recipes import read_recipes
from compression_assets.study.sentences import sentence
from compression_assets.study.sweeps import expanded
from compression_assets.techniques.registry import names, technique
from compression_assets.training.schedule import TrainingRecipe
from compression_assets.training.work import Volume, tokens_of

DISTILLATION_SET = "distillation_set"
SCHEDULE = ("epochs", "warmup_steps", "batch_size", "gradient_accumulation", "max_grad_norm", "max_tokens")
"""What QAD takes over from KD where a study has no recipe for it: how it is trained, not what it learns."""

_SEED = re.compile(r"s[0-9]+")


class WidenedStudy:
    """A study file to which candidates are added."""

    def __init__(self, study: Study, source: Path, file: Path) -> None:
        """source: the file that the study was read from. file: where the widened one belongs."""
        raw = _with_absolute_paths(expanded(read_mapping(source)), source.parent.absolute())
        self.file = file
        self._file_has = {canonical_token(key) for key in raw["techniques"]}
        self._entries: dict[str, Any] = {
            canonical_token(key): value for key, value in raw["techniques"].items()
        }
        self._add_missing()
        self._settle(study.row_multiple)
        self._recipes: dict[str, Strict] = read_recipes(self._entries)
        self._orderings = [ordering.text for ordering in study.parsed_orderings if ordering.text != BASE]
        self._rest = {
            key: value
            for key, value in raw.items()
            if key not in ("techniques", "orderings", "sweep", "seeds")
        }

    def trains(self, name: str) -> bool:
        """Whether a technique trains on the distillation set."""
        recipe = self._recipes[name]
        return isinstance(recipe, TrainingRecipe) and DISTILLATION_SET in technique(name).reads(recipe).data

    def tokens(self, volume: Volume) -> int:
        """The distillation tokens of an order: those of KD in the file, else of the longest training."""
        own = {
            name: tokens_of(recipe, volume)
            for name, recipe in self._recipes.items()
            if ":" not in name and isinstance(recipe, TrainingRecipe) and self.trains(name)
        }
        return own["KD"] if "KD" in self._file_has else max(own[name] for name in own)

    def add(self, candidate: Candidate, volume: Volume, budget: float = 1.0) -> str:
        """Add a candidate with a share of the distillation tokens; the ordering that it is. Errors as `spelled`."""
        return self.add_ordering(self.spelled(candidate, volume, budget))

    def spelled(self, candidate: Candidate, volume: Volume, budget: float = 1.0) -> str:
        """The ordering that a candidate is with a share of the distillation tokens.

        A step whose recipe the study has under some name is written by that name. Raises StudyError for a recipe that
        cannot be, or an order that cannot run.
        """
        total = self.tokens(volume)
        tokens = []
        for name, share in zip(candidate.steps, token_shares(candidate, self.trains), strict=True):
            wanted = math.ceil(total * share * budget) if share else None
            tokens.append(self._token(name, candidate.settings.get(name, {}), wanted, volume))
        return parse_ordering("-".join(tokens), variants=self._entries).text

    def add_ordering(self, text: str) -> str:
        """Add an ordering of recipes that are known; its canonical spelling. Raises StudyError."""
        found = parse_ordering(text, variants=self._entries).text
        if found not in self._orderings:
            self._orderings.append(found)
        return found

    def study(self, *orderings: str) -> Study:
        """The study with all orderings, or with these alone. Raises StudyError for what cannot run."""
        return study_of(self._raw(orderings or tuple(self._orderings)), self.file)

    def write(self) -> None:
        """Write the file anew, for a run of it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_mapping(self.file, self._raw(tuple(self._orderings)))

    def recipe_of(self, ordering: str) -> dict[str, Any]:
        """What a study file needs in order to have an ordering: `techniques` and `orderings`."""
        tokens = dict.fromkeys(ordering.partition("@")[0].split("-"))
        plain = dict.fromkeys(technique_of(token) for token in tokens)
        return {
            "techniques": {
                token: self._entries[token] for token in {**plain, **tokens} if token in self._entries
            },
            "orderings": [ordering],
        }

    def _raw(self, orderings: tuple[str, ...]) -> dict[str, Any]:
        used = {token for text in orderings for token in text.partition("@")[0].split("-")}
        kept = {
            token: entry
            for token, entry in self._entries.items()
            if ":" not in token or token in used or token in self._file_has
        }
        return {**self._rest, "techniques": kept, "orderings": list(orderings)}

    def _add_missing(self) -> None:
        """Plain entries for techniques that the study has none for: defaults, and KD's schedule for QAD."""
        kd = self._entries.get("KD", {})
        for name in names():
            own = {key: kd[key] for key in SCHEDULE if key in kd} if name == "QAD" else {}
            self._entries.setdefault(name, own)
        del self._entries["D"]

    def _settle(self, row_multiple: int) -> None:
        """Write out what recipes leave to the study, which candidates in other formats would change."""
        for token, recipe in read_recipes(self._entries).items():
            settled = technique(technique_of(token)).settled(recipe, row_multiple)
            for key in type(recipe).model_fields:
                if getattr(settled, key) != getattr(recipe, key):
                    self._entries[token][key] = getattr(settled, key)

    def _token(self, name: str, settings: Mapping[str, Any], tokens: int | None, volume: Volume) -> str:
        changes: dict[str, Any] = {}
        for key, value in settings.items():
            place = changes
            *above, last = key.split(".")
            for part in above:
                place = place.setdefault(part, {})
            place[last] = value
        recipe = self._read(name, changes)
        if tokens is not None and isinstance(recipe, TrainingRecipe) and tokens < tokens_of(recipe, volume):
            changes["max_tokens"] = tokens
            recipe = self._read(name, changes)
        same = (
            known for known, other in self._recipes.items() if technique_of(known) == name and other == recipe
        )
        if (token := next(same, None)) is not None:
            return token
        limited = {"max_tokens": tokens} if "max_tokens" in changes else {}
        token = f"{name}:{variant_name({**settings, **limited})}"
        if token in self._recipes:
            raise StudyError(
                f"the study has another recipe under the name {token}: rename it in the study file"
            )
        self._entries[token], self._recipes[token] = changes, recipe
        return token

    def _read(self, name: str, changes: Mapping[str, Any]) -> Strict:
        """The recipe of a technique's plain entry with changes. Raises StudyError for what it does not take."""
        variant = f"{name}:tried"
        entries = {name: self._entries[name], variant: dict(changes)}
        try:
            return read_recipes(entries)[variant]
        except ValidationError as error:
            raise StudyError(f"{name}: {sentence(error, entries, read_recipes)}") from None


def variant_name(settings: Mapping[str, Any]) -> str:
    """A variant's name from what it sets: `{cut: depth, target: 0.7}` is deptht0p7. Letters and digits, a letter first.

    Words stand for themselves, numbers and truth values behind the initials of their setting.
    """
    parts = []
    for key, value in settings.items():
        word = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
        word = re.sub(r"[^a-z0-9]", "", word.lower().replace(".", "p").replace("-", "m"))
        initials = "".join(part[0] for part in re.split(r"[._]", key))
        parts.append(word if isinstance(value, str) else initials + word)
    name = "".join(parts)
    clear = name[:1].isalpha() and not _SEED.fullmatch(name) and name.upper() not in names() and name != BASE
    return name if clear else f"x{name}"


def _with_absolute_paths(raw: Any, folder: Path) -> Any:
    """A study as read, for a file in another folder. Recipes have no paths."""
    if isinstance(raw, list):
        return [_with_absolute_paths(value, folder) for value in raw]
    if not isinstance(raw, dict):
        return raw
    found = {}
    for key, value in raw.items():
        if key in ("path", "include") and isinstance(value, str) and not value.startswith(SHIPPED):
            found[key] = str(folder / Path(value).expanduser())
        else:
            found[key] = deepcopy(value) if key == "techniques" else _with_absolute_paths(value, folder)
    return found
