"""Node classification of the Open Graph Benchmark, from its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets.files import broken, find
from scenarios.datasets.graphs import GraphDataset, node_dataset, read_edges, read_table
from scenarios.datasets.options import check_text
from scenarios.federation import Rows, ScenarioError

SOURCE = "It is published at ogb.stanford.edu as a zip of CSV files."
SPLITS = {"train": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True)
class Ogb:
    """A data set such as ogbn-arxiv or ogbn-products in the benchmark's own files; ogb is not needed.

    The split is the official one. Directed graphs, such as ogbn-arxiv, become undirected. Nodes whose label
    is empty are in no split.

    Parameters
    ----------
    dataset : str
        Folder below ``root``, or the data set's name, such as ``ogbn-arxiv`` for a folder ``ogbn_arxiv``.
    scheme : str or None
        Folder below ``split``; ``None`` where there is one only.
    root : str, Path or None
        Data folder. The data set's folder has ``raw/edge.csv.gz``, ``raw/node-feat.csv.gz``,
        ``raw/node-label.csv.gz``, ``raw/num-node-list.csv.gz`` and, for train, valid and test,
        ``split/SCHEME/train.csv.gz``.

    Notes
    -----
    Hu et al., "Open Graph Benchmark: Datasets for Machine Learning on Graphs", 2020. Not for data of other
    forms: several labels a node (ogbn-proteins), kinds of nodes (ogbn-mag), binary files (ogbn-papers100M).
    """

    dataset: str
    scheme: str | None = None
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_text("dataset", self.dataset, "the data set's folder, such as ogbn_arxiv")
        check_text("scheme", self.scheme, "a folder below split, or null", none=True)

    def load(self) -> GraphDataset:
        """Read the files.

        Raises
        ------
        ScenarioError
            Where a file is missing or damaged, or the data are of another form.
        """
        edges, features, labels, sizes = (
            self._find(f"raw/{file}.csv.gz") for file in ("edge", "node-feat", "node-label", "num-node-list")
        )
        scheme = self._scheme()
        split = {part: self._find(f"{scheme}/{file}.csv.gz") for part, file in SPLITS.items()}
        size = read_table(sizes, header=None, dtype=np.int64).to_numpy()
        if size.shape != (1, 1):
            raise ScenarioError(f"{sizes}: holds numbers of nodes for {size.size} graphs; must be one graph")
        nodes = int(size[0, 0])
        x = read_table(features, header=None, dtype=np.float32).to_numpy()
        label = read_table(labels, header=None, dtype=np.float64, skip_blank_lines=False).to_numpy()
        for path, table in ((features, x), (labels, label)):
            if len(table) != nodes:
                raise broken(path, f"holds {len(table)} nodes, {sizes.name} says {nodes}")
        if label.shape[1] != 1:
            raise ScenarioError(f"{labels}: holds {label.shape[1]} labels a node; must be one")
        y = np.where(np.isnan(label[:, 0]), -1, label[:, 0]).astype(np.int64)
        return node_dataset(
            self.dataset,
            np.ascontiguousarray(x),
            y,
            read_edges(edges, nodes, header=None),
            tuple(f"class_{c}" for c in range(int(y.max(initial=-1)) + 1)),
            splits={part: _rows(path, nodes) for part, path in split.items()},
        )

    def _folder(self) -> str:
        usual = self.dataset.replace("-", "_")
        there = self.root is not None and (Path(self.root).expanduser() / self.dataset).exists()
        return self.dataset if there else usual

    def _find(self, relative: str) -> Path:
        return find(self.dataset, self.root, f"{self._folder()}/{relative}", SOURCE)

    def _scheme(self) -> str:
        """Folder of the split, below that of the data set."""
        if self.scheme is not None:
            return f"split/{self.scheme}"
        schemes = sorted(each.name for each in self._find("split").iterdir() if each.is_dir())
        if len(schemes) != 1:
            found = ", ".join(schemes) or "none"
            raise ScenarioError(f"data '{self.dataset}': name one of its splits by scheme; there are {found}")
        return f"split/{schemes[0]}"


def _rows(path: Path, nodes: int) -> Rows:
    rows = read_table(path, header=None, dtype=np.int64).to_numpy().ravel()
    if not 0 <= rows.min() <= rows.max() < nodes:
        raise broken(path, f"holds nodes {rows.min()} to {rows.max()}, not 0 to {nodes - 1}")
    return rows
