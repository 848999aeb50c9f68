"""Reading a study file as plain values: YAML 1.2's core types, nothing that can be misread.

Belongs here: what is refused before anyone asks what the keys mean. Not here: the keys (`model.py`).
"""

import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from compression_assets.errors import StudyError

MAX_BYTES = 1_000_000


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds: text, whole numbers, finite numbers, booleans, null, lists, mappings.

    Raises:
        StudyError: no such file, not UTF-8, not YAML (with the line), a key twice, a key that is not text, an
            infinite number, an alias, or anything else at the top than one mapping.
    """
    return mapping_of(_read_text(path), path)


def mapping_of(text: str, path: Path) -> dict[str, Any]:
    """The same of a text that was read elsewhere. path: its file, for sentences."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1})" if mark else ""
        problem = str(error.problem)
        problem = f"{error.context} {problem}" if problem.startswith("but ") else problem
        raise StudyError(f"{path}: cannot be read as YAML{place}: {' '.join(problem.split())}") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise StudyError(f"{path}: cannot be read as YAML: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise StudyError(
            f"{path}: a study file is a mapping of keys such as 'name:' and 'orderings:', this is none"
        )
    return value


def write_mapping(path: Path, mapping: dict[str, Any]) -> None:
    """Write what `read_mapping` reads back as it is; the file is there whole or not at all."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(
        yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    beside.replace(path)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StudyError(f"{path}: is larger than {MAX_BYTES:,} bytes, so it is no study file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(f"{path}: there is no such study file") from None
    except IsADirectoryError:
        raise StudyError(f"{path}: is a directory, not a study file") from None
    except UnicodeDecodeError:
        raise StudyError(f"{path}: is not text in UTF-8") from None
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader reads YAML 1.1, where 5e-5 is text, 1:30 is ninety, 012 is ten and `no` is false."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed, write the value out", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise _problem(key, "a key must be text")
            if key.value in seen:
                raise _problem(key, f"the key '{key.value}' is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep=True)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > 30:
            raise _problem(node, "the number has more than 30 digits")
        return int(node.value)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        number = float(node.value)
        if not math.isfinite(number):
            raise _problem(node, f"the number {node.value} is too large")
        return number


def _problem(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _add(tag: str, pattern: str, first: str, constructor: Any) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))
    _Loader.add_constructor(f"tag:yaml.org,2002:{tag}", constructor)


_add("bool", "true|True|false|False", "tTfF", _Loader.construct_yaml_bool)
_add("null", "~|null|Null|NULL|", "~nN", _Loader.construct_yaml_null)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])
_add("int", "[-+]?[0-9]+", "-+0123456789", _Loader.construct_whole_number)
_add(
    "float",
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
    "-+.0123456789",
    _Loader.construct_number,
)
for _tag in ("str", "seq", "map"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", getattr(_Loader, f"construct_yaml_{_tag}"))
_refuse: Any = _Loader.construct_undefined
_Loader.add_constructor(None, _refuse)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what `_Loader` would take for another type, and writes every value out."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, _: Any) -> bool:
        return True
