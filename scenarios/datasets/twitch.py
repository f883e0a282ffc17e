"""Networks of Twitch streamers in seven languages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets.files import broken, find
from scenarios.datasets.graphs import (
    GraphDataset,
    check_features,
    check_once,
    node_dataset,
    projected,
    read_active,
    read_edges,
    read_table,
)
from scenarios.datasets.options import check_choices, check_whole
from scenarios.federation import Rows

SOURCE = (
    "The networks are those of Rozemberczki et al. (2021) at github.com/benedekrozemberczki/MUSAE, each file "
    "gzipped."
)
COUNTRIES = ("DE", "ENGB", "ES", "FR", "PTBR", "RU", "ZHTW")
CLASSES = ("general", "mature")
FEATURES = 3170


@dataclass(frozen=True)
class Twitch:
    """Streamers who are friends, a network for each language: 36,890 nodes and 492,575 edges in 7 domains.

    From 1,912 nodes (PTBR) to 9,498 (DE); the class is whether a stream is for adults, which between 25 and
    61 % are. Features are games played and liked, place and habits, the same 3,170 in all networks, each 0
    or 1. There are no edges between networks.

    Parameters
    ----------
    features : int or None
        Features after a random projection; ``None`` keeps the 3,170, in 470 MB.
    countries : sequence of str
        Which networks; they are named after countries.
    seed : int
        Of the projection.
    root : str, Path or None
        Data folder; its folder ``twitch`` holds ``DE_edges.csv.gz``, ``DE_features.json.gz``,
        ``DE_target.csv.gz`` and so on.

    Notes
    -----
    The projection does not depend on the data (see :func:`scenarios.datasets.graphs.projected`): clients can
    agree on it without sharing anything of their nodes.
    """

    features: int | None = 128
    countries: Sequence[str] = COUNTRIES
    seed: int = 0
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_whole("features", self.features, 1, none="all features")
        check_features(self.features, FEATURES)
        check_choices("countries", self.countries, COUNTRIES)
        check_once("countries", self.countries)
        check_whole("seed", self.seed, 0)

    def load(self) -> GraphDataset:
        """Read the files.

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        from scipy import sparse

        active, labels, sources, targets = [], [], [], []
        first = 0
        for country in self.countries:
            edges, features, target = (
                find("twitch", self.root, f"twitch/{country}_{file}", SOURCE)
                for file in ("edges.csv.gz", "features.json.gz", "target.csv.gz")
            )
            labels.append(_labels(target))
            nodes = len(labels[-1])
            active.append(read_active(features, nodes, FEATURES))
            ends = read_edges(edges, nodes)
            sources.append(ends[0] + first)
            targets.append(ends[1] + first)
            first += nodes
        return node_dataset(
            "twitch",
            projected(sparse.vstack(active, format="csr"), self.features, self.seed),
            np.concatenate(labels),
            (np.concatenate(sources), np.concatenate(targets)),
            CLASSES,
            domain=np.repeat(np.arange(len(labels)), [len(each) for each in labels]),
            domains=tuple(self.countries),
        )


def _labels(path: Path) -> Rows:
    """Class of every node, in order; FR has two nodes twice, with two counts of views but one class."""
    table = read_table(path, usecols=["new_id", "mature"], dtype={"new_id": np.int64, "mature": bool})
    table = table.drop_duplicates().sort_values("new_id")
    if not np.array_equal(table["new_id"], np.arange(len(table))):
        raise broken(path, "column 'new_id' does not give each node 0, 1, ... one class")
    return table["mature"].to_numpy().astype(np.int64)
