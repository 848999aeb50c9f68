"""Fingerprints change with what can change a result, and with nothing else."""

import subprocess
import sys

import pytest

from compression_assets import fingerprints


def forget() -> None:
    fingerprints.code_fingerprint.cache_clear()
    fingerprints._code.cache_clear()


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """edit(module, old, new) replaces text in a module's source as the fingerprint sees it."""
    original = fingerprints._source

    def edit(module: str, old: str, new: str) -> None:
        assert old in original(module)
        forget()
        monkeypatch.setattr(
            fingerprints,
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


def test_code_of_an_imported_module_counts(edited) -> None:  # type: ignore[no-untyped-def]
    before = fingerprints.code_fingerprint("compression_assets.evaluation.measure")
    other = fingerprints.code_fingerprint("compression_assets.tables")
    edited("compression_assets.evaluation.perplexity", "math.fsum", "sum")
    assert fingerprints.code_fingerprint("compression_assets.evaluation.measure") != before
    assert fingerprints.code_fingerprint("compression_assets.tables") == other


def test_docstrings_and_comments_do_not_count(edited) -> None:  # type: ignore[no-untyped-def]
    before = fingerprints.code_fingerprint("compression_assets.evaluation.measure")
    edited("compression_assets.evaluation.perplexity", "Perplexity of message content", "Other words")
    assert fingerprints.code_fingerprint("compression_assets.evaluation.measure") == before


def test_a_technique_reaches_the_training_loop() -> None:
    reached = fingerprints._imported("compression_assets.techniques.distillation")
    assert "compression_assets.training.loop" in reached
    assert "compression_assets.assets.models" not in reached


def test_imports_for_type_checkers_do_not_count() -> None:
    assert "compression_assets.study" not in fingerprints._imported("compression_assets.text.prepare")


def test_importing_the_definitions_stays_light() -> None:
    code = (
        "import sys, compression_assets; compression_assets.defs;"
        "heavy = {'torch', 'transformers', 'bitsandbytes', 'datasets', 'deepeval', 'sentence_transformers', 'pandas'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
