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

    `from_dict` refuses what it does not know, so a misspelt key never goes unnoticed.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `json.dumps` accepts."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config with these values, defaults elsewhere.

        Raises `ConfigError` for an unknown key, a missing one, or a value of the wrong kind.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                raise ConfigError(f"no setting is called {key!r}{suggest(key, cls.settings())}") from None
            raise ConfigError(f"setting {key!r}: {first['msg']} (got {first['input']!r})") from None
        except ConfigError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(str(error)) from None

    @classmethod
    def settings(cls) -> list[str]:
        """Every setting by its dotted name: `network.channels`."""
        names: list[str] = []
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            inner = _config_type(hints[field.name])
            names += [f"{field.name}.{name}" for name in inner.settings()] if inner else [field.name]
        return names

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some settings changed, by dotted name; strings are parsed ("1,2,4" is a tuple).

        Raises `ConfigError` that names the nearest setting for an unknown one.
        """
        values = self.to_dict()
        for key, value in changes.items():
            *parents, last = key.split(".")
            inner: Any = values
            for parent in parents:
                inner = inner.get(parent) if isinstance(inner, dict) else None
            if not isinstance(inner, dict) or last not in inner:
                raise ConfigError(f"no setting is called {key!r}{suggest(key, self.settings())}")
            inner[last] = parse(value, inner[last]) if isinstance(value, str) else value
        return type(self).from_dict(values)


def _config_type(hint: Any) -> type[Config] | None:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, Config)), None)


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
