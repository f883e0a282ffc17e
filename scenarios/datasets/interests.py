"""Synthetic users with several interests: the embedded data of recommendation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from scenarios.datasets.histories import Events, Histories, HistoryDataset, Spans, Values, tenth_of
from scenarios.datasets.options import check_choice, check_whole
from scenarios.federation import Rows

NOISE = 0.1
"""Share of events that have nothing to do with the user's interests."""
SESSION, ROTATING_EVENTS, INTERESTS, CONCENTRATION = 4, 25, 3, 3.0
PERIODS = (1.0, 1.0, 0.5, 2.0)
LONG, SHORT, TARGETS, INTERESTS_LONG, NEW, MIX = 40, 10, 8, 4, 0.3, 0.5


class Catalogue(NamedTuple):
    """Items by category, style and index, and exponents of how popular each is; see `Interests`."""

    categories: int
    styles: int
    each: int
    category_exponent: float
    index_exponent: float

    @property
    def items(self) -> int:
        """Number of items."""
        return self.categories * self.styles * self.each


CATALOGUES = {"rotating": Catalogue(8, 3, 10, 0.7, 0.5), "several": Catalogue(60, 1, 12, 0.6, 0.7)}


@dataclass(frozen=True)
class Interests(Histories):
    """Two kinds of synthetic users, in marketplaces with the same items and other tastes.

    ``rotating``: three interests of a user take turns in the course of a period, each user at a phase of its
    own; 25 events in sessions of four. 240 items in 8 categories of 3 styles. At time t, with ``K = 3``,

    ``w_k ~ exp(3 cos(2 pi (t / period - phase - k / K)))``.

    ``several``: four long-term interests in 40 events, two active ones, of which one may be new, in the next
    10, and both in 8 more; 720 items in 60 categories, no times. One event in ten is noise in either kind.

    The first marketplace is the generator itself. The others put its categories, and the items within each
    style, in another order; ``rotating`` also sets clocks forward by a part of a period and has periods of
    1, 1, 0.5 and 2, in turn.

    Parameters
    ----------
    history, examples, min_history, core, repeats, period, val_from, test_from
        As in :class:`scenarios.datasets.histories.Histories`; a period of the generator counts as a day.
    split : {"own", "leave_one_out", "time", "users"}
        Own, ``rotating``: the last event, first of a session, is for test, the fifth from the end, which also
        is one, for validation, and all before that are trained on. Own, ``several``: of a marketplace's
        users, the last tenth is held out for test and the tenth before for validation, with their last 8
        events as targets.
    seed : int
        Of the draws. The first marketplace is the same whatever the number of marketplaces, and a user
        whatever the number of users.
    kind : {"rotating", "several"}
        Which users.
    markets : int
        Marketplaces, each a domain.
    users : int
        Of each marketplace.

    Notes
    -----
    Made for two models whose papers have no such data: ``rotating`` for IDNP (arXiv 2208.04600), ``several``
    for HCN (arXiv 2210.10547).
    """

    splits: ClassVar[tuple[str, ...]] = ("own", *Histories.splits)

    split: str = "own"
    repeats: bool = True
    kind: str = "rotating"
    markets: int = 4
    users: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, tuple(CATALOGUES))
        check_whole("markets", self.markets, 1)
        check_whole("users", self.users, 1)

    def load(self) -> HistoryDataset:
        """Draw the users.

        Raises
        ------
        ScenarioError
            Where ``split`` needs more users, or times that ``several`` does not have.
        """
        catalogue = CATALOGUES[self.kind]
        draw = _rotating if self.kind == "rotating" else _several
        drawn = [draw(catalogue, self.users, *self._market(number)) for number in range(self.markets)]
        item, time = (np.concatenate(columns) for columns in zip(*drawn, strict=True))
        users, each = self.markets * self.users, item.shape[1]
        category = np.arange(catalogue.items) // (catalogue.styles * catalogue.each) + 1
        return self.cut(
            "interests",
            Events(
                user=np.repeat(np.arange(users), each),
                item=item.ravel(),
                time=time.ravel() if self.kind == "rotating" else None,
                domain=np.repeat(np.arange(self.markets), self.users * each),
                domains=tuple(f"market_{number}" for number in range(self.markets)),
                category=np.concatenate([[0], category]),
                categories=tuple(f"category_{number}" for number in range(catalogue.categories)),
                complete=True,
            ),
        )

    def divide(self, name: str, count: Rows, domain: Rows, time: Values | None) -> Spans:
        """Say what each user's events are for; see `Histories.divide`."""
        if self.split != "own":
            return super().divide(name, count, domain, time)
        if self.kind == "several":
            # Users of a marketplace are alike, so that its last ones stand for a random draw.
            _, users = np.unique(domain, return_counts=True)
            tenth = np.repeat([tenth_of(name, each) for each in users.tolist()], users)
            later = np.repeat(np.cumsum(users), users) - 1 - np.arange(len(count))
            part = np.where(later < tenth, 2, np.where(later < 2 * tenth, 1, 0))
            count = np.where(count > TARGETS, count, 0)
            return Spans.held_out(part, count, np.maximum(count - TARGETS, 0))
        held = SESSION + 1
        count = np.where(count > held + 1, count, 0)  # fewer only where options drop events
        train, last = np.maximum(count - held, 0), np.maximum(count - 1, 0)
        return Spans(train, train, train + (count > 0), last, count)

    def _market(self, number: int) -> tuple[np.random.Generator, Rows, float, float]:
        """Generator of a marketplace, the item in the place of each (from 1 on), offset and period."""
        catalogue = CATALOGUES[self.kind]
        items = np.arange(1, catalogue.items + 1)
        if number == 0:
            return np.random.default_rng(self.seed), items, 0.0, 1.0
        rng = np.random.default_rng([self.seed, number])
        places = items.reshape(catalogue[:3])[rng.permutation(catalogue.categories)]
        places = rng.permuted(places, axis=2)
        return rng, places.ravel(), rng.random(), PERIODS[number % len(PERIODS)]


def _rotating(
    catalogue: Catalogue, users: int, rng: np.random.Generator, places: Rows, offset: float, period: float
) -> tuple[Rows, Values]:
    """Items and times of users with interests that take turns, both (users, 25); IDNP, generator G1."""
    item = np.empty((users, ROTATING_EVENTS), dtype=np.int64)
    time = np.empty(item.shape)
    categories = _zipf(catalogue.categories, catalogue.category_exponent)
    index = _cumulated(_zipf(catalogue.each, catalogue.index_exponent))
    noise, rank = rng.permutation(catalogue.items), _cumulated(_zipf(catalogue.items, 1.0))
    turns = np.arange(INTERESTS) / INTERESTS
    for user in range(users):
        category = rng.choice(catalogue.categories, INTERESTS, replace=False, p=categories)
        style = rng.integers(catalogue.styles, size=INTERESTS)
        phase, t = rng.random(), rng.uniform(0, 3)
        for event in range(ROTATING_EVENTS):
            if event:
                t += rng.uniform(0, 0.01) if event % SESSION else rng.uniform(0.15, 0.75)
            if rng.random() < NOISE:
                number = noise[_pick(rank, rng)]
            else:
                weight = np.exp(CONCENTRATION * np.cos(2 * np.pi * (t / period - phase - turns)))
                k = _pick(_cumulated(weight), rng)
                number = (category[k] * catalogue.styles + style[k]) * catalogue.each + _pick(index, rng)
            item[user, event], time[user, event] = places[number], t + offset
    return item, time


def _several(
    catalogue: Catalogue, users: int, rng: np.random.Generator, places: Rows, *_: float
) -> tuple[Rows, Values]:
    """Items of users with long- and short-term interests, (users, 58), and no times; HCN, generator G2."""
    item = np.empty((users, LONG + SHORT + TARGETS), dtype=np.int64)
    categories = _zipf(catalogue.categories, catalogue.category_exponent)
    index = _cumulated(_zipf(catalogue.each, catalogue.index_exponent))
    noise, rank = rng.permutation(catalogue.items), _cumulated(_zipf(catalogue.items, 1.0))
    for user in range(users):
        long = rng.choice(catalogue.categories, INTERESTS_LONG, replace=False, p=categories)
        weight = _cumulated(rng.dirichlet(np.full(INTERESTS_LONG, 2.0)))
        active = long[rng.choice(INTERESTS_LONG, 2, replace=False)]
        if rng.random() < NEW:
            active[1] = rng.choice(np.setdiff1d(np.arange(catalogue.categories), long))
        for event in range(LONG + SHORT + TARGETS):
            if rng.random() < NOISE:
                number = noise[_pick(rank, rng)]
            else:
                recent = event >= LONG and (event < LONG + SHORT or rng.random() < MIX)
                category = active[rng.integers(2)] if recent else long[_pick(weight, rng)]
                number = category * catalogue.each + _pick(index, rng)
            item[user, event] = places[number]
    return item, np.empty((users, 0))


def _zipf(size: int, exponent: float) -> Values:
    """Popularity ``rank^-exponent`` of ``size`` things, adding up to 1."""
    weight = np.arange(1, size + 1) ** -exponent
    return weight / weight.sum()


def _cumulated(weight: Values) -> Values:
    """Running sums that end at exactly 1."""
    sums = np.cumsum(weight)
    return sums / sums[-1]


def _pick(cumulated: Values, rng: np.random.Generator) -> int:
    """Place drawn with the weights that were cumulated."""
    return int(np.searchsorted(cumulated, rng.random(), side="right"))
