import zlib
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from strategies.seeding import generator, torch_seed


def test_same_arguments_give_the_same_stream() -> None:
    first = generator(3, "split", 1, 2).standard_normal(100)
    assert np.array_equal(first, generator(3, "split", 1, 2).standard_normal(100))
    assert torch_seed(3, "split", 1, 2) == torch_seed(3, "split", 1, 2)


def test_every_argument_matters() -> None:
    calls: list[Any] = [
        (3, "split"),
        (4, "split"),
        (3, "batch"),
        (3, "split", 0),
        (3, "split", 0, 0),
        (3, "split", 1, 2),
    ]
    calls.append((3, "split", 2, 1))
    for a, b in combinations(calls, 2):
        assert generator(*a).integers(2**63) != generator(*b).integers(2**63), (a, b)
        assert torch_seed(*a) != torch_seed(*b), (a, b)


def test_streams_hold_across_processes() -> None:
    # Written down, because Python's own hash of a string would change with every process.
    assert torch_seed(7, "batches", 5, 11) == 6714511776171885504
    key = np.random.SeedSequence(7, spawn_key=(zlib.crc32(b"batches"), 5, 11))
    assert np.array_equal(generator(7, "batches", 5, 11).random(9), np.random.default_rng(key).random(9))


def test_torch_seeds_fit_63_bits_and_use_them() -> None:
    seeds = [torch_seed(0, "torch", k) for k in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert min(seeds) < 2**62
    assert len(set(seeds)) == 200


@pytest.mark.parametrize(
    ("arguments", "name"), [((-1, "p"), "seed"), ((0, "p", -1), "keys"), ((0, "p", 2**32), "keys")]
)
def test_seeds_and_keys_out_of_range_are_refused(arguments: tuple[int, str], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        generator(*arguments)
    with pytest.raises(ValueError, match=f"^{name}: "):
        torch_seed(*arguments)
