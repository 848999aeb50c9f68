"""Every registered technique offers what the registry promises, cheaply."""

import subprocess
import sys
import types
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.strict import Strict
from compression_assets.study.orderings import parse_ordering
from compression_assets.techniques.registry import TECHNIQUES, technique, techniques
from compression_assets.techniques.technique import Technique

DATA_ASSETS = {"calibration_set", "finetuning_set", "distillation_set", "teacher_logits"}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_registered_class_is_a_technique(name: str) -> None:
    found = technique(name)
    assert found.name == name
    assert found.title and found.__doc__
    assert isinstance(found.needs_full_precision, bool) and isinstance(found.quantizes, bool)
    assert set(found.reads(found.Recipe()).data) <= DATA_ASSETS
    assert callable(found.apply)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_recipe_has_defaults_and_refuses_unknown_keys(name: str) -> None:
    recipe = technique(name).Recipe
    assert issubclass(recipe, Strict)
    assert recipe() == recipe.model_validate(recipe().model_dump())
    with pytest.raises(ValueError, match="unknown key 'no_such_key'"):
        recipe.model_validate({"no_such_key": 1})


def test_an_unknown_name_is_answered_with_a_near_match() -> None:
    with pytest.raises(StudyError, match="unknown technique 'KDD': did you mean 'KD'"):
        technique("KDD")
    with pytest.raises(StudyError, match="unknown technique 'XYZ': allowed: KD, FT, P, Q, D"):
        technique("XYZ")


def test_a_new_technique_is_one_file_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clipping(Technique):
        name, title = "C", "weight clipping"

        @staticmethod
        def apply(step: Any) -> Any: ...

    module = types.ModuleType("clipping")
    module.Clipping = Clipping  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "clipping", module)
    monkeypatch.setitem(TECHNIQUES, "C", "clipping:Clipping")
    assert techniques()["C"].title == "weight clipping"
    assert parse_ordering("q-c").path == ("Q", "D", "C", "Q")


def test_a_line_under_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TECHNIQUES, "X", TECHNIQUES["P"])
    with pytest.raises(StudyError, match="its own name is 'P'"):
        technique("X")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from compression_assets.techniques.registry import techniques; techniques();"
        "from compression_assets.study.files import load_study; load_study('paper').nodes;"
        "heavy = {'torch', 'transformers', 'bitsandbytes', 'datasets', 'pandas', 'pyarrow', 'dagster'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
