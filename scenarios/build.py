"""From a data set, a skew and a seed to a federation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from scenarios.federation import ClientSplits, Dataset, Federation, Parts, Rows, ScenarioError
from scenarios.skews.base import (
    Holdings,
    Skew,
    group_rows,
    labels_of,
    largest_remainder,
    portion,
    portions,
)


def build_federation(
    dataset: Dataset, skew: Skew, seed: int, *, val_fraction: float = 0.1, test_fraction: float = 0.3
) -> Federation:
    """Hold test rows out, divide the others among clients, and give each client its own test rows.

    A client's test rows follow what it holds: the held-out rows of each (domain, class) cell are dealt to
    the clients in proportion to their rows in that cell. Cells that nobody holds are in ``tests`` only. A
    skew that drops rows does not shrink the test rows of a cell: those who hold some of it share them all.
    Where rows belong to units, such as users, a unit goes to one client with all that is held out of it, and
    only units that nobody trains on are dealt.

    Parameters
    ----------
    dataset : Dataset
        Its official test rows are held out where it has them.
    skew : Skew
        Divides the rows that are left.
    seed : int
        The result is a pure function of data, skew and seed. Each purpose has a generator of its own, so
        that, say, another ``val_fraction`` leaves every client with the same rows.
    val_fraction : float
        Share of a client's rows kept for validation, rounded down; at least one row is left to train on. Not
        used where the data have official validation rows, which are dealt as test rows are.
    test_fraction : float
        Share of every domain that is held out, in the proportions of its classes; not used where the data
        have official test rows.

    Returns
    -------
    Federation
        Rows are sorted.

    Raises
    ------
    ValueError
        Where the seed or a fraction is out of range.
    ScenarioError
        Where the data cannot be divided in this way.
    """
    _check_fraction("val_fraction", val_fraction)
    _check_fraction("test_fraction", test_fraction)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: not usable, got {seed!r}; use a whole number of at least 0")
    hold_out_rng, skew_rng, val_rng, deal_rng = map(
        np.random.default_rng, np.random.SeedSequence(seed).spawn(4)
    )

    classes, label = np.unique(labels_of(dataset), return_inverse=True)
    cells = dataset.domain * len(classes) + label
    if dataset.test is None:
        held_out = _hold_out(dataset, cells, test_fraction, hold_out_rng)
    else:
        held_out = np.unique(dataset.test).astype(np.int64)
    free = np.zeros(len(dataset), dtype=bool)
    free[_trainable(dataset)] = True
    free[held_out] = False
    if dataset.val is not None:
        free[dataset.val] = False
    pool = np.flatnonzero(free)
    if not len(pool):
        raise ScenarioError(f"data '{dataset.name}': no rows are left to train on; use more data")

    held = _split(dataset, skew, pool, skew_rng)
    _check_split(dataset, pool, held)
    if dataset.val is None:
        train, val = _set_aside(held.parts, val_fraction, val_rng)
    else:
        train, val = held.parts, _dealt(dataset, held, np.unique(dataset.val), cells, val_rng)
    test = _dealt(dataset, held, held_out, cells, deal_rng)
    of_domain = group_rows(held_out, dataset.domain[held_out])
    named = {name: of_domain.get(index, held_out[:0]) for index, name in enumerate(dataset.domains)}
    clients = ClientSplits(train, val, test, held.domain)
    return Federation(dataset.localised(clients), clients, named)


def _check_fraction(field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{field}: not a share, got {value!r}; use a number from 0 to below 1")


def _trainable(dataset: Dataset) -> Rows:
    """Rows that may be trained on or held out."""
    return np.arange(len(dataset), dtype=np.int64) if dataset.train is None else np.unique(dataset.train)


def _hold_out(dataset: Dataset, cells: Rows, fraction: float, rng: np.random.Generator) -> Rows:
    """Random share of every domain, divided over its classes by their size."""
    chosen = []
    trainable = _trainable(dataset)
    for rows in group_rows(trainable, dataset.domain[trainable]).values():
        classes = list(group_rows(rows, cells[rows]).values())
        sizes = largest_remainder(
            np.array([len(of_class) for of_class in classes]), portion(fraction, len(rows)), rng
        )
        chosen += [
            rng.permutation(of_class)[:size] for of_class, size in zip(classes, sizes.tolist(), strict=True)
        ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def _split(dataset: Dataset, skew: Skew, pool: Rows, rng: np.random.Generator) -> Holdings:
    """What clients hold of the pool; units are divided by one row each, and their other rows follow it."""
    if dataset.unit is None:
        return Holdings.of(skew.split(dataset, pool, rng))
    units, first, unit = np.unique(dataset.unit[pool], return_index=True, return_inverse=True)
    held = Holdings.of(skew.split(dataset, pool[first], rng))
    owner = np.full(len(units), -1)
    owner[np.searchsorted(units, dataset.unit[held.parts.rows])] = held.parts.owner
    owner = owner[unit]
    taken = owner >= 0
    return replace(held, parts=Parts.gather(pool[taken], owner[taken], len(held)))


def _dealt(
    dataset: Dataset, holdings: Holdings, held_out: Rows, cells: Rows, rng: np.random.Generator
) -> Parts:
    """Held-out rows of every client: those of its own units, and a share of the units that nobody holds."""
    held = holdings.parts
    if holdings.owner is not None:
        owner = holdings.owner[held_out]
        return Parts.gather(held_out[owner >= 0], owner[owner >= 0], len(held))
    if dataset.unit is None:
        return _deal(held, held_out, cells, rng)
    owner = np.full(int(dataset.unit.max(initial=0)) + 1, -1)
    owner[dataset.unit[held.rows]] = held.owner
    strange = held_out[owner[dataset.unit[held_out]] < 0]
    _, first = np.unique(dataset.unit[strange], return_index=True)
    dealt = _deal(held, strange[first], cells, rng)
    owner[dataset.unit[dealt.rows]] = dealt.owner
    owner = owner[dataset.unit[held_out]]
    return Parts.gather(held_out[owner >= 0], owner[owner >= 0], len(held))


def _check_split(dataset: Dataset, pool: Rows, held: Holdings) -> None:
    """Refuse a client without rows, a row held twice, and a row that is not in the pool."""
    if not len(held):
        raise ScenarioError(f"data '{dataset.name}': the skew makes no clients; ask for at least one")
    if not held.parts.sizes.all():
        client = np.argmin(held.parts.sizes)
        raise ScenarioError(
            f"data '{dataset.name}': client {client} of {len(held)} gets no rows to train on; "
            "use fewer clients, a milder skew or more data"
        )
    rows = np.sort(held.parts.rows)
    if (np.diff(rows) == 0).any():
        raise ScenarioError("the skew gives a row to two clients; the rows of its clients must be disjoint")
    if not np.isin(rows, pool).all():
        raise ScenarioError("the skew gives out rows that are not in its pool; use the rows it is handed")


def _set_aside(held: Parts, fraction: float, rng: np.random.Generator) -> tuple[Parts, Parts]:
    """Training and validation rows of every client."""
    shuffled = held.rows.copy()
    # All rows are shuffled even for no validation rows, so that the next client's order is the same.
    for start, end in itertools.pairwise(held.starts.tolist()):
        rng.shuffle(shuffled[start:end])
    sizes = np.minimum(portions(fraction, held.sizes), held.sizes - 1)
    owner = held.owner
    aside = np.arange(len(shuffled)) - held.starts[owner] < sizes[owner]
    train, val = (Parts.gather(shuffled[part], owner[part], len(held)) for part in (~aside, aside))
    return train, val


def _deal(held: Parts, held_out: Rows, cells: Rows, rng: np.random.Generator) -> Parts:
    """Share of every client in rows that are held out of training."""
    holders = group_rows(held.owner, cells[held.rows])
    dealt, owner = [held_out[:0]], [held_out[:0]]
    for cell, rows in group_rows(held_out, cells[held_out]).items():
        if cell in holders:
            sizes = largest_remainder(np.bincount(holders[cell], minlength=len(held)), len(rows), rng)
            dealt.append(rng.permutation(rows))
            owner.append(np.repeat(np.arange(len(held)), sizes))
    return Parts.gather(np.concatenate(dealt), np.concatenate(owner), len(held))
