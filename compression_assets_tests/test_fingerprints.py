"""Fingerprints change with what can change a result, and with nothing else."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from compression_assets.graph.assets.code import format_code, step_code, technique_code
from compression_assets.store import code_fingerprints, fingerprint_cache, fingerprints
from compression_assets.store.code_fingerprints import code_fingerprint
from compression_assets.study.files import PRESETS, load_study
from compression_assets.techniques.registry import TECHNIQUES, technique


def forget() -> None:
    code_fingerprints.code_fingerprint.cache_clear()
    code_fingerprints._module.cache_clear()


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """edit(module, old, new) replaces text in a module's source as the fingerprint sees it."""
    original = code_fingerprints._source

    def edit(module: str, old: str, new: str) -> None:
        assert old in original(module)
        forget()
        monkeypatch.setattr(
            code_fingerprints,
            "_source",
            lambda name: original(name).replace(old, new) if name == module else original(name),
        )

    yield edit
    monkeypatch.undo()
    forget()


def test_keys_may_come_in_any_order_but_values_count() -> None:
    assert fingerprints.fingerprint({"a": 1, "b": [2]}) == fingerprints.fingerprint({"b": [2], "a": 1})
    assert fingerprints.fingerprint({"a": 1}) != fingerprints.fingerprint({"a": 1.5})


def test_nan_has_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="JSON"):
        fingerprints.fingerprint({"a": float("nan")})


MEASURE = "compression_assets.evaluation.measure"
PERPLEXITY = "compression_assets.evaluation.perplexity"


def test_code_of_an_imported_definition_counts(edited) -> None:  # type: ignore[no-untyped-def]
    before = code_fingerprint(MEASURE)
    other = code_fingerprint("compression_assets.tables")
    edited(PERPLEXITY, "math.fsum", "sum")
    assert code_fingerprint(MEASURE) != before
    assert code_fingerprint("compression_assets.tables") == other


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("perplexity of content", "Other words"),
        ("import math", "import math\nimport json as something"),
        ("\n\n\ndef ", "\n\n\nUNUSED = 1\n\n\ndef "),
    ],
    ids=["docstring", "import", "what nobody uses"],
)
def test_what_cannot_change_a_result_does_not_count(edited, old: str, new: str) -> None:  # type: ignore[no-untyped-def]
    before = code_fingerprint(MEASURE + ":measure")
    edited(PERPLEXITY, old, new)
    assert code_fingerprint(MEASURE + ":measure") == before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """write(module=source, ...) makes a package `moved` of these modules and returns its fingerprint of main:run."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(**modules: str) -> str:
        shutil.rmtree(tmp_path / "moved", ignore_errors=True)
        (tmp_path / "moved").mkdir()
        (tmp_path / "moved" / "__init__.py").write_text("")
        for name, source in modules.items():
            (tmp_path / "moved" / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.startswith("moved")]:
            del sys.modules[name]
        code_fingerprints._is_module.cache_clear()
        forget()
        return code_fingerprint("moved.main:run")

    yield write
    code_fingerprints._is_module.cache_clear()
    forget()


HELPER = "def double(x: int) -> int:\n    return FACTOR * x\n\nFACTOR = 2\n"
RUN = "\ndef run(x):\n    return double(x)\n"


def test_code_may_move(package) -> None:  # type: ignore[no-untyped-def]
    before = package(main="from moved.helpers import double\n" + RUN, helpers=HELPER)
    assert before == package(main=HELPER + RUN.replace("return", '"""Words."""\n    return'))
    assert before == package(
        main="def run(x):\n    from moved import elsewhere as e\n    return e.double(x)\n", elsewhere=HELPER
    )
    assert before == package(
        main="from moved.helpers import double as twice\n" + RUN.replace("double", "twice"), helpers=HELPER
    )
    assert before != package(main=HELPER.replace("= 2", "= 3") + RUN)


def test_errors_may_be_reworded_and_registries_may_grow(package) -> None:  # type: ignore[no-untyped-def]
    source = (
        'KINDS = {"a": "moved.main:run"}\n\ndef run(x):\n'
        '    if x not in KINDS:\n        raise ValueError(f"no {x}")\n    return x\n'
    )
    before = package(main=source)
    assert before == package(main=source.replace("no {x}", "there is no {x}"))
    assert before == package(
        main=source.replace('"moved.main:run"}', '"moved.main:run", "b": "moved.main:b"}')
    )
    assert before != package(main=source.replace("ValueError", "KeyError"))


def test_a_technique_reaches_the_training_loop() -> None:
    reached = code_fingerprints.reached(*technique_code(technique("KD")))
    modules = {module for module, _ in reached}
    assert "compression_assets.training.loop" in modules
    assert "compression_assets.graph.assets.models" not in modules


@pytest.mark.parametrize("name", TECHNIQUES)
def test_what_predicts_a_step_does_not_count_and_what_makes_it_does(edited, name: str) -> None:  # type: ignore[no-untyped-def]
    roots = technique_code(technique(name))
    before, folder = code_fingerprint(*roots), technique(name).__module__
    modules = {module for module, _ in code_fingerprints.reached(*roots)}
    assert {f"{folder}.apply", technique(name).Recipe.__module__} <= modules
    assert not modules & {folder, f"{folder}.predict", "compression_assets.techniques.prediction"}
    edited(f"{folder}.predict", "    return ", "    return 2 * ")
    assert code_fingerprint(*roots) == before
    edited(f"{folder}.apply", "return StepReport(", "return 2 * StepReport(")
    assert code_fingerprint(*roots) != before


def test_whoever_reads_or_writes_a_number_format_depends_on_its_code() -> None:
    study, nf4 = load_study("smoke"), "compression_assets.weights.formats.nf4:NF4"
    formats = {node.key: set(step_code(study, node)) & {nf4} for node in study.nodes.values() if node.path}
    assert formats["q"] == formats["q_d"] == formats["kd_q"] == {nf4}
    assert not formats["kd"] and not formats["q_d_kd"]
    assert (
        format_code(study, ("Q",)) == (nf4,)
        and format_code(study, ("Q", "D")) == format_code(study, ()) == ()
    )


@pytest.mark.parametrize(
    "techniques", [{}, {"P:depth": {"cut": "depth", "ratio": 0.5}, "P:heads": {"cut": "heads"}}]
)
def test_importing_the_definitions_stays_light(techniques: dict[str, Any], tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
    raw |= {
        "techniques": raw["techniques"] | techniques,
        "orderings": ["P-KD-Q", *(f"{name}-KD-Q" for name in techniques)],
    }
    study = tmp_path / "light.yaml"
    study.write_text(yaml.safe_dump(raw | {"name": "light"}))
    code = (
        "import sys, compression_assets; compression_assets.defs(); compression_assets.CompressionStudy;"
        "heavy = {'torch', 'transformers', 'bitsandbytes', 'datasets', 'deepeval', 'sentence_transformers', 'pandas'};"
        "heavy |= {'obstore', 'psycopg2', 'ray', 'dagster_ray', 'dagster_postgres'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"COMPRESSION_STUDY": str(study), "COMPRESSION_STORAGE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """find(source, ...) writes a package `kept` and asks for the hash of kept.main:run as a new process does.

    Returns the hash, and whether any source was parsed for it.
    """
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fingerprint_cache, "_file", lambda: tmp_path / "cache" / "found.json")
    parsed: list[str] = []
    original = code_fingerprints._source
    monkeypatch.setattr(code_fingerprints, "_source", lambda name: parsed.append(name) or original(name))

    def as_new() -> None:
        forget()
        sys.modules.pop("kept", None)  # of a test before, in a folder that is gone
        code_fingerprints._is_module.cache_clear()
        for remembered in (
            fingerprint_cache.kept_code_fingerprint,
            fingerprint_cache._known,
            fingerprint_cache._sources,
        ):
            remembered.cache_clear()

    def find(main: str, **others: str) -> tuple[str, bool]:
        (tmp_path / "kept").mkdir(exist_ok=True)
        for name, source in {"__init__": "", "main": main, **others}.items():
            (tmp_path / "kept" / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        as_new()
        parsed.clear()
        return fingerprint_cache.kept_code_fingerprint("kept.main:run"), bool(parsed)

    yield find
    monkeypatch.undo()
    as_new()


def test_a_kept_fingerprint_is_found_without_parsing_while_no_source_changes(kept, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    main = "from kept.helpers import double\n" + RUN
    first, parsed = kept(main, helpers=HELPER)
    assert parsed and first == code_fingerprint("kept.main:run")
    assert kept(main, helpers=HELPER) == (first, False)
    # As long, and perhaps within one tick of the file system's clock: only the content tells.
    changed, parsed = kept(main, helpers=HELPER.replace("= 2", "= 3"))
    assert parsed and changed == code_fingerprint("kept.main:run") != first
    assert kept(main, helpers=HELPER) == (first, False)
    assert kept(main, helpers=HELPER, further="") == (first, True)

    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(file.read_text()[:-9])
    assert kept(main, helpers=HELPER) == (first, True)
    assert kept(main, helpers=HELPER) == (first, False)
    file.write_text(file.read_text().replace('"sources": "', '"sources": "of another version '))
    assert kept(main, helpers=HELPER) == (first, True)


def test_where_nothing_can_be_kept_fingerprints_are_found_all_the_same(  # type: ignore[no-untyped-def]
    kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file, where a folder is wanted")
    first, _ = kept(HELPER + RUN)
    assert kept(HELPER + RUN) == (first, True)
