"""Every registered technique offers what the registry promises, cheaply."""

import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.store.reports import StepReport
from compression_assets.strict import Strict
from compression_assets.study.orderings import parse_ordering
from compression_assets.techniques import registry
from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.techniques.registry import TECHNIQUES, technique, techniques
from compression_assets.techniques.step import StepInputs
from compression_assets.techniques.technique import Reads, Technique, last_quantized

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


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """entry_points(NAME=class): packages that bring these techniques."""

    def bring(**classes: Any) -> None:
        module = types.ModuleType("brought")
        vars(module).update({f"Class{name}": found for name, found in classes.items()})
        monkeypatch.setitem(sys.modules, "brought", module)
        places = [EntryPoint(name, f"brought:Class{name}", registry.GROUP) for name in classes]
        monkeypatch.setattr(registry, "entry_points", lambda group: places)
        registry._from_packages.cache_clear()

    yield bring
    registry._from_packages.cache_clear()


class Shortest(Technique):
    """All that the base class does not say."""

    name, title = "S", "shortest"

    @staticmethod
    def apply(step: StepInputs) -> StepReport:
        return StepReport()


def test_what_a_class_leaves_out_has_a_value(entry_points: Callable[..., None]) -> None:
    entry_points(S=Shortest)
    found, config = technique("S"), {"hidden_size": 8, "quantization_config": {}}
    assert list(techniques()) == [*TECHNIQUES, "S"]
    assert parse_ordering("Q-S").path == ("Q", "D", "S", "Q")
    recipe = found.Recipe()
    assert found.reads(recipe) == Reads() and found.checks == ()
    assert found.refusal(config, recipe) is None
    prediction = found.predict(config, recipe, StepContext(max_length=8))
    assert prediction == Prediction(config, flops=None, seconds=None) and not prediction.quantized


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("KD", Shortest, "are both the technique KD: uninstall one of them"),
        ("s", Shortest, "its name must be capitals and digits"),
        ("T", Shortest, "registered as technique T, its own name is 'S'"),
        ("S", dict, "does not extend Technique"),
        ("S", None, "cannot be imported from brought:ClassS|does not extend Technique"),
        (
            "N",
            type("Nameless", (Technique,), {"name": "N", "apply": Shortest.apply}),
            "does not say its title",
        ),
        ("N", type("Idle", (Technique,), {"name": "N", "title": "idle"}), "does not say its apply"),
        ("N", type("Packed", (Shortest,), {"name": "N", "quantizes": True}), "does not say its leaves"),
    ],
)
def test_what_a_package_must_not_bring(
    entry_points: Callable[..., None], name: str, found: Any, message: str
) -> None:
    entry_points(**{name: found})
    with pytest.raises(StudyError, match=message):
        technique(name)


def test_an_earlier_model_is_named_by_what_ran_before() -> None:
    q, d, kd = technique("Q"), technique("D"), technique("KD")
    assert last_quantized([q, d, kd]) == 1
    assert last_quantized([q, d, kd, q, d]) == 4
    with pytest.raises(StudyError, match="nothing is quantized before it"):
        last_quantized([kd])


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from compression_assets.techniques.registry import techniques; techniques();"
        "from compression_assets.study.files import load_study; load_study('paper').nodes;"
        "heavy = {'torch', 'transformers', 'bitsandbytes', 'datasets', 'pandas', 'pyarrow', 'dagster'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
