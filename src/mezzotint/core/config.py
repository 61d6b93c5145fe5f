"""Configurations: frozen dataclasses that become `config.json` and come back, checked."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import Self

from .errors import ConfigError, suggest


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of every configuration: a frozen dataclass of numbers, strings, tuples and other configs.

    `from_dict` refuses what it does not know, so a misspelt key never goes unnoticed. A field may be one of several
    configs, `network: UNetConfig | DiTConfig`; each of them then has a constant, `kind: Literal["dit"] = "dit"`.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `json.dumps` accepts."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config with these values, defaults elsewhere.

        Where a field may be one of several configs and its values have no `kind`, it is the first of them.
        Raises `ConfigError` for an unknown key, a missing one, or a value of the wrong kind.
        """
        return cls._read(values, "")

    @classmethod
    def _read(cls, values: Mapping[str, Any], owner: str) -> Self:
        """The same; `owner` is what stands before the names of these settings: "network."."""
        from pydantic import TypeAdapter, ValidationError

        read = dict(values)
        for name, options in _inner_configs(cls).items():
            if isinstance(inner := read.get(name), Mapping):
                read[name] = _option(options, inner, f"{owner}{name}")._read(inner, f"{owner}{name}.")
        try:
            return TypeAdapter(cls).validate_python(read)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                near = suggest(owner + key, [owner + name for name in cls.settings()])
                raise ConfigError(f"no setting is called {owner + key!r}{near}") from None
            raise ConfigError(f"setting {owner + key!r}: {first['msg']} (got {first['input']!r})") from None
        except ConfigError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(str(error)) from None

    @classmethod
    def settings(cls) -> list[str]:
        """Every setting by its dotted name: `network.channels`; of a field of several kinds, those of each."""
        names: list[str] = []
        inner = _inner_configs(cls)
        for field in dataclasses.fields(cls):
            below = [f"{field.name}.{name}" for option in inner.get(field.name, []) for name in option.settings()]
            names += dict.fromkeys(below or [field.name])
        return names

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some settings changed, by dotted name; strings are parsed ("1,2,4" is a tuple).

        Another `kind` of an inner config begins from the defaults of that kind, whatever else is changed.
        Raises `ConfigError` that names the nearest setting for an unknown one.
        """
        values = self.to_dict()
        for key in [key for key in changes if key.endswith(".kind")]:
            owner = key.removesuffix(".kind")
            options = _inner_configs(type(self)).get(owner, [])
            if len(options) > 1 and changes[key] != values[owner]["kind"]:
                values[owner] = _option(options, {"kind": changes[key]}, owner)._read({}, f"{owner}.").to_dict()
        for key, value in changes.items():
            *parents, last = key.split(".")
            inner: Any = values
            for parent in parents:
                inner = inner.get(parent) if isinstance(inner, dict) else None
            if not isinstance(inner, dict) or last not in inner:
                raise ConfigError(f"no setting is called {key!r}{suggest(key, _dotted(values))}")
            inner[last] = parse(value, inner[last]) if isinstance(value, str) else value
        return type(self).from_dict(values)


def _inner_configs(cls: type[Config]) -> dict[str, list[type[Config]]]:
    """The fields that are configs themselves, with each config that they may be."""
    found: dict[str, list[type[Config]]] = {}
    for name, hint in typing.get_type_hints(cls).items():
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        if configs := [o for o in options if isinstance(o, type) and issubclass(o, Config)]:
            found[name] = configs
    return found


def _option(options: list[type[Config]], values: Mapping[str, Any], name: str) -> type[Config]:
    """Which of several configs has these values: that of their `kind`, or the first where they have none."""
    if len(options) == 1 or "kind" not in values:
        return options[0]
    kinds = {getattr(option, "kind", option.__name__): option for option in options}
    if values["kind"] not in kinds:
        raise ConfigError(f"setting '{name}.kind' is {', '.join(kinds)}, not {values['kind']!r}")
    return kinds[values["kind"]]


def _dotted(values: Mapping[str, Any]) -> list[str]:
    """The names of plain values within values: `network.channels`."""
    names: list[str] = []
    for name, value in values.items():
        names += [f"{name}.{below}" for below in _dotted(value)] if isinstance(value, dict) and value else [name]
    return names


def parse(text: str, present: Any = None) -> Any:
    """A command-line string as the kind of value that it replaces, where there is one; "[0.2, 0.8]" is a list."""
    if isinstance(present, str):
        return text
    if isinstance(present, list) and not text.startswith("["):
        return [parse(part.strip(), None) for part in text.split(",") if part.strip()]
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text
