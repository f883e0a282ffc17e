from pathlib import Path

import numpy as np
import pytest

from scenarios.build import build_federation
from scenarios.datasets.omniglot import DRAWERS, FILE, Omniglot
from scenarios.federation import ScenarioError
from scenarios.skews.domain_skew import DomainSkew


def test_the_background_set_by_alphabet(data_root: Path) -> None:
    data = Omniglot(root=data_root).load()
    x, y = data.arrays["x"], data.arrays["y"]
    assert (x.shape, x.dtype) == ((19280, 1, 28, 28), np.uint8)
    assert np.array_equal(np.bincount(y), np.full(964, DRAWERS))
    assert len(data.domains) == 30
    assert data.domains[14] == "Greek"
    assert np.bincount(data.domain)[14] == 24 * DRAWERS
    of_class = {int(label): data.domains[domain] for label, domain in zip(y, data.domain, strict=True)}
    assert all(name.startswith(f"{of_class[label]}/") for label, name in enumerate(data.meta.classes))
    assert len(set(data.meta.classes)) == 964
    assert x.mean() < 64  # ink is high, and there is little of it
    assert data.test is None


def test_by_drawer_clients_hold_all_classes_and_by_alphabet_none_in_common(data_root: Path) -> None:
    drawers = build_federation(Omniglot(size=14, by="drawer", root=data_root).load(), DomainSkew(), 0)
    assert drawers.dataset.arrays["x"].shape == (19280, 1, 14, 14)
    assert len(drawers.clients) == DRAWERS
    y = drawers.dataset.arrays["y"]
    for name, client in zip(drawers.domains, drawers.clients, strict=True):
        held = np.concatenate([client.train, client.val, drawers.tests[name]])
        assert np.array_equal(np.sort(y[held]), np.arange(964))

    alphabets = build_federation(Omniglot(size=14, root=data_root).load(), DomainSkew(), 0)
    held = [set(y[client.train].tolist()) for client in alphabets.clients]
    assert len(held) == 30
    assert sum(map(len, held)) == len(set().union(*held)) == 964


def test_characters_for_a_test_are_of_other_alphabets(data_root: Path) -> None:
    omniglot = Omniglot(root=data_root)
    plain, turned = (omniglot.characters("evaluation", rotations) for rotations in (False, True))
    assert not set(plain.domains) & set(omniglot.load().domains)
    assert np.array_equal(np.bincount(plain.arrays["y"]), np.full(659, DRAWERS))

    rows = len(plain)
    assert np.array_equal(np.bincount(turned.arrays["y"]), np.full(4 * 659, DRAWERS))
    for turns in range(4):
        part = slice(turns * rows, (turns + 1) * rows)
        back = np.rot90(turned.arrays["x"][part], -turns, axes=(2, 3))
        assert np.array_equal(back, plain.arrays["x"])
        assert np.array_equal(turned.arrays["y"][part], plain.arrays["y"] + 659 * turns)
        assert np.array_equal(turned.domain[part], plain.domain)
    assert turned.meta.classes[659 + 3] == f"{plain.meta.classes[3]} 90 degrees"


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^by: unknown, got 'drawers'; .*did you mean 'drawer'"):
        Omniglot(by="drawers")
    with pytest.raises(ValueError, match=r"^size: .*got 0; use a whole number"):
        Omniglot(size=0)
    with pytest.raises(ValueError, match=r"^part: unknown, got 'test'; use background or evaluation"):
        Omniglot(root=tmp_path).characters("test")
    with pytest.raises(ScenarioError, match=r"nothing at .*omniglot_28\.npz.*Lake"):
        Omniglot(root=tmp_path).load()

    path = tmp_path / FILE
    path.parent.mkdir()
    path.write_bytes(b"PK")
    with pytest.raises(ScenarioError, match=r"omniglot_28\.npz: not a whole npz file"):
        Omniglot(root=tmp_path).load()
    np.savez(path, background_x=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(ScenarioError, match=r"holds no array .*background_char"):
        Omniglot(root=tmp_path).load()
    held = {
        "x": np.zeros((19280, 28, 28), np.uint8),
        "char": np.repeat(np.arange(964), DRAWERS),
        "alphabet": np.zeros(19280, np.int8),
        "drawer": np.tile(np.arange(20), 964),
        "alphabet_names": np.array(["A"]),
    }
    np.savez(path, **{f"background_{key}": value for key, value in held.items()})
    with pytest.raises(ScenarioError, match="array 'drawer' is not of 19280 numbers 1 to 20"):
        Omniglot(root=tmp_path).load()
