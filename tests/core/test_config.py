"""Configurations survive json, and refuse what they do not know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
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
