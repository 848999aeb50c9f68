"""What makes two results the same: hashes of settings, of code, of files and of library versions.

A finished step is reused only while its fingerprint is unchanged, so everything that can change a
result has to reach one of these functions.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "compression_assets"
LIBRARIES = ("torch", "transformers", "tokenizers", "bitsandbytes", "safetensors")


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(file: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide what a step computes."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


@cache
def code_fingerprint(module: str) -> str:
    """SHA-256 (hex) over a module's code and that of every module of this package it imports.

    Comments, docstrings, formatting and imports for type checkers do not count: a reworded sentence must not
    retrain a model.
    """
    return fingerprint({name: _code(name)[0] for name in sorted(_imported(module))})


def _imported(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += _code(name)[1]
    return found


@cache
def _code(module: str) -> tuple[str, list[str]]:
    """(its code as text, the modules of this package that it imports); most modules belong to many fingerprints."""
    tree = _executed(_source(module))
    return ast.dump(tree), _package_imports(tree)


def _package_imports(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith(PACKAGE + ".")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            names += [_target(str(node.module), alias.name) for alias in node.names]
    return names


def _target(module: str, name: str) -> str:
    """`from package.a import b` imports the module a.b if there is one, else something inside a."""
    return f"{module}.{name}" if _is_module(f"{module}.{name}") else module


@cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} has no source file to fingerprint")
    return Path(spec.origin).read_text()


def _executed(source: str) -> ast.Module:
    """The syntax tree without docstrings and without `if TYPE_CHECKING:` blocks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not _only_for_readers(part)] or [ast.Pass()]
    return tree


def _only_for_readers(part: ast.stmt) -> bool:
    if isinstance(part, ast.If):
        return isinstance(part.test, ast.Name) and part.test.id == "TYPE_CHECKING"
    # A string that stands alone: a docstring of a module, class, function or of the name before it.
    return (
        isinstance(part, ast.Expr)
        and isinstance(part.value, ast.Constant)
        and isinstance(part.value.value, str)
    )
