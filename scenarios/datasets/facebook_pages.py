"""The network of Facebook pages that like each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets.files import broken, find
from scenarios.datasets.graphs import (
    GraphDataset,
    check_features,
    node_dataset,
    projected,
    read_active,
    read_edges,
    read_table,
)
from scenarios.datasets.options import check_whole

SOURCE = (
    "The network is that of Rozemberczki et al. (2021) at github.com/benedekrozemberczki/MUSAE, each file "
    "gzipped."
)
TYPES = ("company", "government", "politician", "tvshow")
FEATURES = 4714


@dataclass(frozen=True)
class FacebookPages:
    """22,470 verified pages of four types, with 170,823 mutual likes, in one domain.

    Features are words of a page's description, each 0 or 1. The file has 171,002 edges, of which 179 are
    pages that like themselves.

    Parameters
    ----------
    features : int or None
        Features after a random projection, which does not depend on the data (see
        :func:`scenarios.datasets.graphs.projected`); ``None`` keeps the 4,714, in 420 MB.
    seed : int
        Of the projection.
    root : str, Path or None
        Data folder; its folder ``facebook_pages`` holds ``edges.csv.gz``, ``features.json.gz`` and
        ``target.csv.gz``.
    """

    features: int | None = 128
    seed: int = 0
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_whole("features", self.features, 1, none="all features")
        check_features(self.features, FEATURES)
        check_whole("seed", self.seed, 0)

    def load(self) -> GraphDataset:
        """Read the files.

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged.
        """
        edges, features, target = (
            find("facebook_pages", self.root, f"facebook_pages/{file}", SOURCE)
            for file in ("edges.csv.gz", "features.json.gz", "target.csv.gz")
        )
        table = read_table(target, usecols=["id", "page_type"], dtype={"id": np.int64}).sort_values("id")
        kinds = table["page_type"].to_numpy(dtype=str)
        if not np.array_equal(table["id"], np.arange(len(table))) or not np.isin(kinds, TYPES).all():
            raise broken(target, f"does not give each page 0, 1, ... a type of {', '.join(TYPES)}")
        y = np.searchsorted(TYPES, kinds).astype(np.int64)
        x = projected(read_active(features, len(y), FEATURES), self.features, self.seed)
        return node_dataset("facebook_pages", x, y, read_edges(edges, len(y)), TYPES)
