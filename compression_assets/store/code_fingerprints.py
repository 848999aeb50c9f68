"""A hash of the code that a result depends on, which stays the same when that code only moves.

The unit is a definition: a function, a class or an assignment at the top of a module. From one definition to the next
leads every name that it uses, through whatever imports. What counts is the text of the definitions reached, not the
modules they stand in, so a function that moves, or a module that is renamed, makes nothing again.

What does not count: docstrings, comments, formatting, annotations of functions, imports, the text of errors that are
raised, and registries of "module:Class" strings. Whoever looks a class up in a registry names it as a root.
"""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from compression_assets.store.fingerprints import fingerprint

PACKAGE = "compression_assets"
_ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Place = tuple[str, str]
"""(module, name of a definition in it)."""


@cache
def code_fingerprint(*roots: str) -> str:
    """SHA-256 (hex) over what is reached from `roots`, each "module" (all its definitions) or "module:name".

    Raises ModuleNotFoundError for a module without source, KeyError for a name that its module does not define.
    """
    texts = {(name, _module(module).text(name)) for module, name in reached(*roots)}
    return fingerprint(sorted(texts))


def reached(*roots: str) -> set[Place]:
    """Every definition that code starting at `roots` may use: of this package, and of the roots' own packages."""
    packages = packages_of(roots)
    waiting = [place for root in roots for place in _places(root)]
    found: set[Place] = set()
    while waiting:
        place = waiting.pop()
        if place in found:
            continue
        found.add(place)
        module = _module(place[0])
        for name in module.used(place[1]):
            waiting += _resolved(module, place[1], name, packages)
        # What a module does when it is imported belongs to everything in it.
        waiting += [(place[0], effect) for effect in module.effects]
    return found


def packages_of(roots: Iterable[str]) -> set[str]:
    """The packages whose sources decide a fingerprint of `roots`."""
    return {PACKAGE, *(root.partition(".")[0].partition(":")[0] for root in roots)}


@dataclass
class _Module:
    """A module's definitions. imports: local name -> (module, name in it, or None for the module itself).

    Each is asked for by many fingerprints, so what is found out about one is kept.
    """

    name: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    effects: list[str] = field(default_factory=list)
    _texts: dict[str, str] = field(default_factory=dict)
    _used: dict[str, list[str]] = field(default_factory=dict)
    _aliases: dict[str, dict[str, tuple[str, str | None]]] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """SHA-256 of the definition as it counts; cuts its tree, so names used in it are gathered before."""
        if name not in self._texts:
            self.used(name)
            counted = _Counted(self, name)
            parts = [ast.unparse(counted.visit(part)) for part in self.definitions[name]]
            self._texts[name] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return self._texts[name]

    def used(self, name: str) -> list[str]:
        """Names that a definition uses, those of a module's content as "module.name"; annotations included."""
        if name in self._used:
            return self._used[name]
        found = self._used.setdefault(name, [])
        for part in self.definitions[name]:
            for node in ast.walk(part):
                if isinstance(node, ast.Name):
                    found.append(node.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    found.append(f"{node.value.id}.{node.attr}")
                elif (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, str)
                    and node.value.isidentifier()
                ):
                    found.append(node.value)  # an annotation in quotes
        return found

    def aliases(self, name: str) -> dict[str, tuple[str, str | None]]:
        """The module's imports and those inside a definition."""
        if name not in self._aliases:
            inner: dict[str, tuple[str, str | None]] = {}
            for part in self.definitions[name]:
                inner |= _imports(part)
            self._aliases[name] = self.imports | inner if inner else self.imports
        return self._aliases[name]


class _Counted(ast.NodeTransformer):
    """Leaves of a definition what can change a result, with imported names as they are called where they stand."""

    def __init__(self, module: _Module, name: str):
        self._aliases = module.aliases(name)
        self._package = module.name.partition(".")[0]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._without_words(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._without_words(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._without_words(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        node.cause = None
        return self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and self._is_module(node.value.id):
            return ast.Name(node.attr, ast.Load())
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        module, name = self._aliases.get(node.id, ("", None))
        return ast.Name(name, node.ctx) if name and self._is_own(module) else node

    def _is_module(self, name: str) -> bool:
        target = self._aliases.get(name)
        return target is not None and self._is_own(target[0]) and _content_of(*target) is not None

    def _is_own(self, module: str) -> bool:
        return module.partition(".")[0] in (PACKAGE, self._package)

    def _without_words(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> ast.AST:
        if not isinstance(node, ast.ClassDef):
            node.returns = None
        node.body = [part for part in node.body if not _is_text(part)]
        counted = self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return counted


def _places(root: str) -> Iterator[Place]:
    module, _, name = root.partition(":")
    if name and name not in _module(module).definitions:
        raise KeyError(f"{module} defines no {name}")
    yield from ((module, one) for one in ([name] if name else _module(module).definitions))


def _resolved(module: _Module, definition: str, name: str, packages: set[str]) -> Iterator[Place]:
    """The definitions that a name stands for: none for a local name or one of another library."""
    first, _, attribute = name.partition(".")
    target = module.aliases(definition).get(first)
    if target is None:
        if not attribute and first in module.definitions:
            yield module.name, first
        return
    origin, content = target
    if origin.partition(".")[0] not in packages:
        return
    if (inner := _content_of(origin, content)) is not None:
        yield from _named(inner, attribute) if attribute else ()
    elif not attribute and content:
        yield from _named(origin, content)


def _named(module: str, name: str) -> Iterator[Place]:
    """A definition, followed through modules that only pass it on."""
    found = _module(module)
    if name in found.definitions:
        yield module, name
    elif (target := found.imports.get(name)) and target[1]:
        yield from _named(target[0], target[1])


def _content_of(origin: str, content: str | None) -> str | None:
    """The module that an import makes known under a name; None where it makes something inside a module known."""
    if content is None:
        return origin
    inner = f"{origin}.{content}"
    return inner if _is_module(inner) else None


@cache
def _module(name: str) -> _Module:
    found = _Module(name)
    for part in _flat(ast.parse(_source(name)).body):
        found.imports |= _imports(part) if isinstance(part, (ast.Import, ast.ImportFrom)) else {}
        if isinstance(part, (ast.Import, ast.ImportFrom)) or _is_text(part) or _is_registry(part):
            continue
        names = _defined(part)
        if not names:
            names = [f"<effect {len(found.effects)}>"]
            found.effects += names
        for one in names:
            found.definitions.setdefault(one, []).append(part)
    return found


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those for type checkers without their `if`."""
    for part in body:
        if isinstance(part, ast.If) and isinstance(part.test, ast.Name) and part.test.id == "TYPE_CHECKING":
            yield from (inner for inner in part.body if isinstance(inner, (ast.Import, ast.ImportFrom)))
        else:
            yield part


def _defined(part: ast.stmt) -> list[str]:
    if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [part.name]
    if isinstance(part, ast.AnnAssign):
        return [part.target.id] if isinstance(part.target, ast.Name) else []
    if isinstance(part, ast.Assign):
        return [node.id for target in part.targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return []


def _imports(part: ast.AST) -> dict[str, tuple[str, str | None]]:
    found: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(part):
        if isinstance(node, ast.Import):
            found |= {alias.asname: (alias.name, None) for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found


def _is_text(part: ast.stmt) -> bool:
    """A string that stands alone: a docstring of a module, class, function or of the name before it."""
    return (
        isinstance(part, ast.Expr)
        and isinstance(part.value, ast.Constant)
        and isinstance(part.value.value, str)
    )


def _is_registry(part: ast.stmt) -> bool:
    value = part.value if isinstance(part, (ast.Assign, ast.AnnAssign)) else None
    return (
        isinstance(value, ast.Dict)
        and bool(value.values)
        and all(
            isinstance(entry, ast.Constant) and isinstance(entry.value, str) and _ENTRY.fullmatch(entry.value)
            for entry in value.values
        )
    )


@cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, AttributeError):
        return False


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} has no source file to fingerprint")
    return Path(spec.origin).read_text()
