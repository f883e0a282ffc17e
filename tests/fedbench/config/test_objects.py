"""Options against signatures: what fits, and what is said where it does not."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from clients.errors import ClientError
from fedbench.config.objects import call, check_options, load, make, words
from fedbench.errors import UserError

NEAREST = "fedbench.errors.nearest"


def thing(
    given: object,
    size: int,
    *,
    rate: float = 0.5,
    name: str | None = None,
    kind: Literal["a", "b"] = "a",
    flag: bool = False,
    sides: Sequence[int] = (1, 2),
    betas: tuple[float, float] = (0.9, 0.99),
    table: dict[str, Any] | None = None,
) -> int:
    if size < 0:
        raise ValueError(f"size: must be 0 or more, got {size}\nand a second line")
    if rate > 1:
        raise ClientError("the data do not fit")
    return size


def check(**options):
    check_options(thing, {"size": 1} | options, "here", positional=1)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"rate": 1}, {"rate": 0.1}, {"name": None}, {"name": "x"}, {"kind": "b"}, {"flag": True},
        {"sides": []}, {"sides": [3]}, {"betas": [1, 2.0]}, {"table": {"x": 1}},
    ],
)  # fmt: skip
def test_values_that_fit(options):
    check(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": "1"}, "here.size=1: must be a whole number"),
        ({"size": 1.5}, "here.size=1.5: must be a whole number"),
        ({"size": True}, "here.size=True: must be a whole number"),
        ({"size": None}, "here.size=None: must be a whole number"),
        ({"rate": "x"}, "here.rate=x: must be a number"),
        ({"rate": False}, "here.rate=False: must be a number"),
        ({"name": 3}, "here.name=3: must be text or null"),
        ({"kind": "c"}, "here.kind=c: must be one of a, b"),
        ({"flag": 1}, "here.flag=1: must be true or false"),
        ({"sides": 3}, "here.sides=3: must be a list of whole numbers"),
        ({"sides": ["x"]}, "here.sides=['x']: must be a list of whole numbers"),
        ({"betas": [1]}, "here.betas=[1]: must be a list of numbers"),
        ({"table": [1]}, "here.table=[1]: must be names with values or null"),
        ({"sise": 1}, "here.sise: no such option; did you mean 'size'? (one of: betas, flag, kind, "),
        ({"given": 1}, "here.given: no such option"),
    ],
)
def test_values_that_do_not_fit(options, said):
    with pytest.raises(UserError) as error:
        check(**options)
    assert str(error.value).startswith(said)


def test_what_is_missing_and_what_the_program_gives():
    with pytest.raises(UserError, match=r"^here\.size: needs a value$"):
        check_options(thing, {}, "here", positional=1)
    check_options(thing, {}, "here", skip={"size"}, positional=1)
    with pytest.raises(UserError, match=r"^here\.size: no such option"):
        check_options(thing, {"size": 1}, "here", skip={"size"}, positional=1)


def test_open_ended_signatures_take_any_name():
    def anything(size: int, **rest: Any) -> None: ...

    check_options(anything, {"size": 1, "more": 2}, "here")
    with pytest.raises(UserError):
        check_options(anything, {"size": "x", "more": 2}, "here")


def test_errors_about_an_option_name_its_key():
    with pytest.raises(UserError, match=r"^here\.size: must be 0 or more, got -1$"):
        call(thing, "here", {"size": -1}, None)
    with pytest.raises(ClientError, match=r"^here: the data do not fit$"):
        call(thing, "here", {"size": 1, "rate": 2.0}, None)


def test_objects_are_made_with_options_and_with_what_the_program_gives():
    node = OmegaConf.create({"_target_": NEAREST, "word": "fedavgg"})
    assert make(node, "here", choices=["fedavg"]) == "; did you mean 'fedavg'? (one of: fedavg)"
    assert make({"_target_": NEAREST}, "here", "x", ["y"]) == "; one of: y"


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"size": 1}, "here: has no _target_, the full name of the class to use"),
        ({"_target_": None}, "here: has no _target_"),
        ("mlp", "here=mlp: must be a class with its options"),
        (
            {"_target_": "nowhere.Thing"},
            "here._target_: cannot load 'nowhere.Thing' (No module named 'nowhere')",
        ),
        ({"_target_": "fedbench.errors.Thing"}, "here._target_: cannot load 'fedbench.errors.Thing' (module"),
        ({"_target_": "Thing"}, "here._target_: cannot load 'Thing' ("),
    ],
)
def test_nodes_that_name_nothing(node, said):
    with pytest.raises(UserError) as error:
        make(node, "here")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_module_that_cannot_be_imported_says_what_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "my_method.py").write_text("import no_such_library\nclass Mine: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="No module named 'no_such_library'"):
        load("my_method.Mine", "here")


def test_types_in_words():
    assert words(int | None) == "a whole number or null"
    assert words(list[float]) == "a list of numbers"
    assert words(dict[str, int]) == "names with values"
    assert words(Literal[1, 3]) == "one of 1, 3"
