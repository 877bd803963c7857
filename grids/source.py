"""YAML text -> content and the line of each key; and content -> text that reads back the same.

`yaml.safe_load` alone is not enough: it knows no lines, takes the second of two equal keys without
a word, reads `1e-6` as text and `off` as False. Leaves out what a grid is (`load.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from grids.errors import InputError

Where = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers and truth values: `1e-6` is a number, `off` a word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rx) for tag, rx in rules if tag not in ("tag:yaml.org,2002:bool",)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class Source:
    """One file's content and the line of each key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Where, int] = {}
        self.data = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
            node = yaml.compose(text, Loader=_Loader)
            data = self._build(node, ()) if node else {}
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: is not UTF-8 text") from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise InputError(f"{self.path}:{line}: not valid YAML: {error.problem}") from None
        except InputError:
            raise
        except (yaml.YAMLError, ValueError) as error:
            raise InputError(f"{self.path}: not valid YAML: {error}") from None
        except RecursionError:
            raise InputError(f"{self.path}: not valid YAML: an alias holds itself") from None
        if not isinstance(data, dict):
            raise InputError(
                f"{self.path}:1: a grid is a mapping of keys, got {type(data).__name__}"
            )
        return data

    def _build(self, node: yaml.Node, where: Where) -> Any:
        self.lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*where, i)) for i, item in enumerate(node.value)]
        return _Loader("").construct_object(node)

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise InputError(f"{self.path}:{line}: a key is a word; got a {key_node.id}")
            if key in built:
                raise InputError(
                    f"{self.path}:{line}: {dotted((*where, key))}: duplicate name; "
                    f"first on line {self.lines[(*where, key)]}; keep one"
                )
            self.lines[(*where, key)] = line
            built[key] = self._build(value_node, (*where, key))
        return built

    def line(self, where: Where) -> int:
        """Of the key, or of the nearest key around it."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back as it was: a word that would read as a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def text_of(content: dict[str, Any]) -> str:
    """YAML of a mapping, its keys in their order."""
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return str(text)


def dotted(where: Iterable[str | int]) -> str:
    """`axes.model`."""
    return ".".join(str(part) for part in where)
