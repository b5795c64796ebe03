"""A value of a config has the type and the range of its key; the line names the key and what to set."""

import math
from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from hsakd_jax.core.errors import UserError
from hsakd_jax.core.typed import check_section, field_types


class Section(Struct):
    """What the tests check."""

    epochs: Annotated[int, Meta(ge=1, le=100)] = 3
    lr: Annotated[float, Meta(ge=0, le=10)] = 0.1
    momentum: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    side: Annotated[int, Meta(ge=1)] | None = None
    schedule: Literal["cosine", "step"] = "step"
    nesterov: bool = True
    milestones: tuple[Annotated[int, Meta(ge=0, le=9)] | Annotated[float, Meta(ge=0, le=9)], ...] = ()
    names: Annotated[tuple[str, ...], Meta(min_length=2)] = ("a", "b")


RIGHT = {
    "epochs": 3,
    "lr": 1,
    "momentum": 0.9,
    "side": 0,
    "schedule": "step",
    "nesterov": False,
    "milestones": (1, 2.5),
    "names": ("a", "b"),
}


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("epochs", 0, "s.epochs is 0: set a whole number from 1 to 100"),
        ("epochs", 10**30, f"s.epochs is {10**30}: set a whole number from 1 to 100"),
        ("epochs", True, "s.epochs is True: set a whole number from 1 to 100"),
        ("lr", math.nan, "s.lr is nan: set a number from 0 to 10"),
        ("lr", -math.inf, "s.lr is -inf: set a number from 0 to 10"),
        ("lr", "x", "s.lr is 'x': set a number from 0 to 10"),
        ("momentum", 1.0, "s.momentum is 1.0: set a number above 0 to below 1"),
        ("side", -1, "s.side is -1: set a whole number from 1"),
        ("schedule", "linear", "s.schedule is 'linear': choose cosine or step"),
        ("nesterov", 1, "s.nesterov is 1: set True or False"),
        ("milestones", (9.5,), "s.milestones is (9.5,): set values in brackets, or none, each a number from 0 to 9"),
        ("milestones", 3, "s.milestones is 3: set values in brackets, or none, each a number from 0 to 9"),
        ("names", ("a",), "s.names is ('a',): set values in brackets, at least 2 of them, each a name"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(key, value, line):
    check_section({"s": RIGHT}, {"s": field_types(Section)})
    with pytest.raises(UserError) as refused:
        check_section({"s": {**RIGHT, key: value}}, {"s": field_types(Section)})
    assert str(refused.value) == line


def test_keys_are_neither_unknown_nor_missing():
    types = {"s": field_types(Section)}
    with pytest.raises(UserError, match=r"unknown config key 's.epoch': did you mean 's.epochs'\?"):
        check_section({"s": {**RIGHT, "epoch": 1}}, types)
    with pytest.raises(UserError, match=r"s.lr is missing: add it to the config file"):
        check_section({"s": {key: value for key, value in RIGHT.items() if key != "lr"}}, types)
    with pytest.raises(UserError, match=r"s is 3: it must be a section"):
        check_section({"s": 3}, types)
