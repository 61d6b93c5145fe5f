"""Configurations survive json, and refuse what they do not know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.core.config import Config
from mezzotint.core.errors import ConfigError


@dataclass(frozen=True)
class Inner(Config):
    width: int = 8
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer(Config):
    inner: Inner = Inner()
    rates: tuple[float, ...] = (1.0,)
    name: str = "x"
    bound: float | None = None
    flag: bool = False


@dataclass(frozen=True)
class Wide(Config):
    kind: Literal["wide"] = "wide"
    width: int = 8
    heads: tuple[int, ...] = (2, 4)
    inner: Inner = Inner()


@dataclass(frozen=True)
class Deep(Config):
    depth: int = 3
    width: int = 5
    kind: Literal["deep"] = "deep"

    def __post_init__(self):
        if self.depth < 1:
            raise ConfigError(f"depth must be at least 1, not {self.depth}")


@dataclass(frozen=True)
class Either(Config):
    net: Deep | Wide = Deep()
    spare: Wide | Deep | None = None


@dataclass(frozen=True)
class Holder(Config):
    either: Either = Either()


@settings(deadline=None)  # the first time, pydantic compiles
@given(
    st.integers(1, 99),
    st.lists(st.floats(-1e6, 1e6), max_size=4),
    st.text(max_size=9),
    st.none() | st.floats(-9, 9),
    st.booleans(),
)
def test_a_config_survives_json(width, rates, name, bound, flag):
    config = Outer(Inner(width), tuple(rates), name, bound, flag)
    assert Outer.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("inner.width", "64", Outer(Inner(64))),
        ("rates", "0.5,2", Outer(rates=(0.5, 2.0))),
        ("rates", "[3]", Outer(rates=(3.0,))),
        ("name", "12", Outer(name="12")),
        ("bound", "0.1", Outer(bound=0.1)),
        ("bound", "null", Outer()),
        ("flag", "true", Outer(flag=True)),
        ("flag", "True", Outer(flag=True)),
    ],
)
def test_strings_become_what_they_replace(key, text, expected):
    assert Outer().updated({key: text}) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inner.widht": "1"}, "inner.width"),
        ({"naem": "1"}, "'name'"),
        ({"inner.width": "wide"}, "inner.width"),
        ({"inner.kind": "c"}, "inner.kind"),
        ({"inner": "1"}, "inner"),
        ({"rates.x": "1"}, "rates"),
    ],
)
def test_wrong_settings_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        Outer().updated(changes)


def test_unknown_and_missing_keys_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'name'"):
        Outer.from_dict({"nmae": "x"})
    with pytest.raises(ConfigError, match="nest"):
        Outer.from_dict({"inner": {"nest": 1}})


@pytest.mark.parametrize(
    "config", [Either(), Either(Wide(width=3, heads=()), Deep(width=8)), Either(Wide(inner=Inner(1)))]
)
def test_a_field_of_several_kinds_comes_back_as_what_it_was(config):
    """All settings of `Deep` but one are also settings of `Wide`, whose values must not be taken for the other's."""
    assert Either.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Holder.from_dict(Holder(config).to_dict()) == Holder(config)


def test_values_that_do_not_say_their_kind_are_of_the_first():
    """As in the files of older runs, which had no other."""
    assert Either.from_dict({"net": {"width": 7}, "spare": {"width": 7}}) == Either(Deep(width=7), Wide(width=7))
    assert Either.from_dict({"net": {}}) == Either()


@pytest.mark.parametrize(
    ("start", "changes", "expected"),
    [
        (Either(), {"net.width": "64"}, Either(Deep(width=64))),
        (Either(Wide()), {"net.width": "64"}, Either(Wide(width=64))),
        (Either(Wide()), {"net.inner.kind": "b"}, Either(Wide(inner=Inner(kind="b")))),
        (Either(Deep(9, 9)), {"net.heads": "1,2", "net.kind": "wide"}, Either(Wide(heads=(1, 2)))),
        (Either(Deep(9, 9)), {"net.kind": "deep"}, Either(Deep(9, 9))),
    ],
)
def test_settings_of_the_kind_that_is_there_can_be_changed(start, changes, expected):
    assert start.updated(changes) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"net.widht": "1"}, "no setting is called 'net.widht'; did you mean 'net.width'"),
        ({"net.heads": "1"}, "no setting is called 'net.heads'; did you mean 'net.kind'"),
        ({"net.width": "wide"}, "setting 'net.width'"),
        ({"net.kind": "tall"}, "'net.kind' is deep, wide, not 'tall'"),
        ({"net.depth": "0"}, "depth must be at least 1"),
        ({"net": "3"}, "net"),
    ],
)
def test_wrong_settings_of_a_field_of_several_kinds_are_named(changes, words):
    """By the name under which the user knows them, and by no setting of the other kinds."""
    with pytest.raises(ConfigError, match=words):
        Either().updated(changes)
    with pytest.raises(ConfigError, match=r"no setting is called 'either\.net\.heads'"):
        Holder.from_dict({"either": {"net": {"kind": "deep", "heads": [1]}}})


def test_the_settings_of_every_kind_are_listed_once():
    assert Either.settings()[:6] == ["net.depth", "net.width", "net.kind", "net.heads", "net.inner.width",
                                     "net.inner.kind"]  # fmt: skip
