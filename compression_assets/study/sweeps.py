"""The `sweep` block of a study file: a setting, its values, and the variants and orderings that they stand for.

Everything else sees the expanded study only: a sweep is a short way of writing variants, not another mechanism.
"""

import re
from typing import Any

from pydantic import Field, ValidationError

from compression_assets.strict import Strict


class Sweep(Strict):
    """One setting of one technique, over values, in some orderings.

    `{technique: P, setting: ratio, values: [0.1, 0.5], orderings: [P, P-KD-Q]}` adds the variants P:ratio0p1 and
    P:ratio0p5, and the orderings in which they take P's place. A setting inside another is written with a dot
    (finetune.epochs). The plain recipe is not swept: list its orderings where they belong.
    """

    technique: str
    setting: str = Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$")
    values: tuple[int | float | str | bool, ...] = Field(min_length=1)
    orderings: tuple[str, ...] = Field(min_length=1)

    def variants(self) -> dict[str, dict[str, Any]]:
        """Step token -> what its recipe changes."""
        return {f"{self.technique}:{self._name(value)}": self._settings(value) for value in self.values}

    def texts(self) -> list[str]:
        """The orderings with each variant in the technique's place. Raises ValueError for one that is without it."""
        plain = re.compile(rf"(?i)(?<![A-Za-z0-9:]){re.escape(self.technique)}(?![A-Za-z0-9:])")
        for text in self.orderings:
            if not plain.search(text):
                raise ValueError(f"sweep: the ordering {text!r} has no {self.technique} to be swept")
        return [plain.sub(token, text) for token in self.variants() for text in self.orderings]

    def _name(self, value: Any) -> str:
        """ratio, 0.1 -> ratio0p1: variants are letters and digits."""
        setting = self.setting.rpartition(".")[2].replace("_", "")
        shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
        if isinstance(value, float) and float(shown) != value:
            shown = repr(value)
        return setting + re.sub(r"[^a-z0-9]", "", shown.replace(".", "p").replace("-", "m"))

    def _settings(self, value: Any) -> dict[str, Any]:
        settings: Any = value
        for part in reversed(self.setting.split(".")):
            settings = {part: settings}
        found: dict[str, Any] = settings
        return found


def expanded(study: Any) -> Any:
    """A study as read, with its sweeps written out in `techniques` and `orderings`.

    What is wrong in it is left for the study's validation to name, which knows where it stands in the file. Raises
    ValueError for a variant that is there already with another recipe, and for an ordering without the technique.
    """
    if not (isinstance(study, dict) and isinstance(study.get("sweep"), list)):
        return study
    if not (isinstance(study.get("techniques"), dict) and isinstance(study.get("orderings"), list)):
        return study
    techniques, orderings = dict(study["techniques"]), list(study["orderings"])
    for raw in study["sweep"]:
        if not isinstance(raw, dict) or set(raw) != set(Sweep.model_fields):
            return study
        try:
            sweep = Sweep.model_validate(raw)
        except ValidationError:
            return study
        for token, recipe in sweep.variants().items():
            if not _agrees(techniques.setdefault(token, recipe), recipe):
                raise ValueError(
                    f"sweep: {sweep.setting} makes the variant {token}, and techniques has another of that name"
                )
        orderings += [text for text in sweep.texts() if text not in orderings]
    return {**study, "techniques": techniques, "orderings": orderings}


def _agrees(recipe: Any, settings: Any) -> bool:
    """Whether a recipe, which may say more, has these settings."""
    if not (isinstance(settings, dict) and isinstance(recipe, dict)):
        return bool(recipe == settings)
    return all(name in recipe and _agrees(recipe[name], value) for name, value in settings.items())
