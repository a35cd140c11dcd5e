"""Configuration: YAML files read with their line numbers, and dataclasses built from them strictly."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from heed.errors import UserError

T = TypeVar("T")
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file: what it says, and on which line it says it."""

    values: Any
    file: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    """The line of every key and list entry, counted from 1."""

    def at(self, *path: str | int) -> Document:
        """The part of the document under `path`."""
        values: Any = self.values
        for key in path:
            values = cast(Any, values)[key] if isinstance(values, Mapping | list) else None
        lines = {where[len(path) :]: line for where, line in self.lines.items() if where[: len(path)] == path}
        return Document(values, self.file, lines)

    def error(self, path: KeyPath, found: str, expected: str | None = None, fix: str | None = None) -> UserError:
        """The error that names this file and the line of `path`, or of its nearest parent that has one."""
        line = next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), None)
        return UserError(found, file=self.file, line=line, expected=expected, fix=fix)

    def with_value(self, path: tuple[str, ...], value: object) -> Document:
        """The same document with one value replaced; a list entry is named by its number or by its only key."""
        lines = {where: line for where, line in self.lines.items() if where[: len(path)] != path}
        return Document(_replaced(self.values, path, value), self.file, lines)


def _replaced(values: Any, path: tuple[str, ...], value: object) -> Any:
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(values, list):
        named = [{v: None} if isinstance(v, str) else v for v in values]  # a name alone has nothing below it
        index = int(key) if key.isdecimal() else next((i for i, v in enumerate(named) if isinstance(v, Mapping) and key in v), -1)
        if not 0 <= index < len(values):
            known = (name for v in named for name in (v if isinstance(v, Mapping) else [v]))
            raise UserError(f"there is no {key!r} to set", expected=f"one of {', '.join(map(str, known))}")
        inner = rest if key.isdecimal() else path
        return [_replaced(named[i], inner, value) if i == index else v for i, v in enumerate(values)]
    if values is not None and not isinstance(values, Mapping):
        raise UserError(f"there is no {key!r} to set within {values!r}", expected="the name of a setting")
    return {**(values or {}), key: _replaced((values or {}).get(key), rest, value)}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of a number (`1e-5` is one) and of a date (text)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that the loader would take for numbers."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def yaml_text(values: object) -> str:
    """Plain values as YAML that `parse_yaml` reads back as they are."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> Document:
    """Read one YAML file; raises `UserError` with the line where it is missing, unreadable, malformed or repeats a key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such file", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", file=path, expected="a YAML file in UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> Document:
    """The document that `text` is; `file` is the name used in errors."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        values = None if node is None else _construct(loader, node, (), lines, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"not valid YAML: {error.problem or error.context}", file=file, line=mark.line + 1 if mark else None) from None
    finally:
        loader.dispose()
    return Document(values, file, lines)


def _construct(loader: _Loader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], file: str) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, i), lines, file) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    loader.flatten_mapping(node)
    values: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if key in values:
            raise UserError(f"{key!r} is given twice", file=file, line=key_node.start_mark.line + 1)
        lines[(*path, key)] = key_node.start_mark.line + 1
        values[key] = _construct(loader, value_node, (*path, key), lines, file)
    return values


def load_config(cls: type[T], values: Mapping[str, object] | None, where: str | Path | Document) -> T:
    """Build a dataclass from a mapping, strictly: no unknown key, no value of another type, every value in range.

    `where` names the file in errors; given as the `Document` that holds the mapping, errors also name the line.
    Nested dataclasses (also optional ones) are nested mappings. Raises `UserError`.
    """
    document = where if isinstance(where, Document) else Document(values, str(where))
    return _build(cls, {} if values is None else values, document, ())


def _build(cls: type[T], values: object, document: Document, path: KeyPath) -> T:
    if not isinstance(values, Mapping):
        raise document.error(path, f"{_dotted(path) or 'the document'} is {values!r}", expected="a mapping of keys to values")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = _hints(cls)
    for key in values:
        if key not in fields:
            close = get_close_matches(str(key), fields, n=1, cutoff=0.5)
            expected = close[0] if close else f"one of {', '.join(fields)}"
            raise document.error((*path, key), f"there is no key {_dotted((*path, key))!r}", expected=expected)
    built = {name: _value(hints[name], value, document, (*path, name)) for name, value in values.items()}
    for name, f in fields.items():
        if name not in built and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise document.error(path, f"{_dotted((*path, name))} is missing", expected=_words(hints[name]))
    try:
        return cls(**built)
    except UserError as error:  # from __post_init__, which knows the field and not the file
        named = next((name for name in fields if str(error).startswith(f"{name} ")), None)
        raise document.error(path if named is None else (*path, named), str(error)) from None


def _value(hint: Any, value: object, document: Document, path: KeyPath) -> Any:
    if get_origin(hint) is tuple and dataclasses.is_dataclass(get_args(hint)[0]) and isinstance(value, list):
        return tuple(_value(get_args(hint)[0], each, document, (*path, i)) for i, each in enumerate(value))
    nested = next((h for h in _alternatives(hint) if dataclasses.is_dataclass(h)), None)
    if nested is not None and (value is not None or NoneType not in _alternatives(hint)):
        return _build(nested, value, document, path)  # type: ignore[arg-type]
    try:
        # Through JSON, because strict JSON takes lists for tuples, text for paths and whole numbers for floats, and nothing else.
        return _reader(hint).validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError):
        raise document.error(path, f"{_dotted(path)} is {value!r}", expected=_words(hint)) from None


# Kept, for a server reads a project's settings with every request.
_hints, _reader = cache(get_type_hints), cache(TypeAdapter[Any])


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _dotted(path: KeyPath) -> str:
    return ".".join(str(key) for key in path)


def _words(hint: Any) -> str:
    """A type as a person would say it."""
    if len(_alternatives(hint)) > 1:
        return " or ".join(_words(h) for h in _alternatives(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(str(a) for a in get_args(hint))}"
    if get_origin(hint) in (list, tuple):
        return f"a list, each entry {_words(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"a mapping of keys, each to {_words(get_args(hint)[1])}"
    if dataclasses.is_dataclass(hint) or get_origin(hint) is not None:
        return "a mapping of keys to values"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null", Path: "a path"}
    return words.get(hint, str(getattr(hint, "__name__", hint)))


def as_mapping(config: object) -> dict[str, Any]:
    """A dataclass as plain values that YAML and JSON can hold; `load_config` reads it back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))  # type: ignore[call-overload]
