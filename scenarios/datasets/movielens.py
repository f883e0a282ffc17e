"""MovieLens latest-small: ratings of films by 610 users over 22 years, with genres."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets.files import broken, find
from scenarios.datasets.histories import Events, Histories, HistoryDataset, Table

SOURCE = "MovieLens latest-small is published by GroupLens at grouplens.org/datasets/movielens."


@dataclass(frozen=True)
class Movielens(Histories):
    """100,836 ratings of 9,724 films, each of which counts as having seen the film; a single domain.

    A film's category is the first of its genres, or that of films without one.

    Parameters
    ----------
    history, split, examples, min_history, core, repeats, period, val_from, test_from, seed
        As in :class:`scenarios.datasets.histories.Histories`; films and users with fewer than 5 ratings are
        dropped, and times are in weeks, by default.
    root : str, Path or None
        Data folder; its folder ``movielens_latest_small`` holds ``ratings.csv.gz`` and ``movies.csv.gz``.

    Notes
    -----
    Harper and Konstan, "The MovieLens Datasets: History and Context" (2015).
    """

    core: int = 5
    period: float | None = 7.0
    root: str | Path | None = None

    def load(self) -> HistoryDataset:
        """Read the files.

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        ratings, movies = (
            Table.read(find("movielens", self.root, f"movielens_latest_small/{name}.csv.gz", SOURCE), columns)
            for name, columns in (
                ("ratings", ("userId", "movieId", "timestamp")),
                ("movies", ("movieId", "genres")),
            )
        )
        user, _ = ratings.codes("userId")
        item, films = ratings.codes("movieId")
        genres = dict(zip(movies.cells["movieId"], movies.cells["genres"].str.split("|").str[0], strict=True))
        missing = [film for film in films if film not in genres]
        if missing:
            raise broken(movies.path, f"has no film {missing[0]}, which {ratings.path.name} has")
        names, category = np.unique([genres[film] for film in films], return_inverse=True)
        return self.cut(
            "movielens",
            Events(
                user=user,
                item=item + 1,
                time=ratings.days("timestamp"),
                domain=np.zeros(len(user), dtype=np.int64),
                domains=("movielens",),
                category=np.concatenate([[0], category + 1]),
                categories=tuple(names.tolist()),
            ),
        )
