"""Citation networks Cora and CiteSeer with the split of Planetoid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.datasets.files import ARCHIVE_ERRORS, broken, find
from scenarios.datasets.graphs import GraphDataset, node_dataset
from scenarios.datasets.options import check_choice, check_flag

SOURCE = (
    "Cora and CiteSeer are at github.com/kimiyoung/planetoid (Yang et al., 2016); this is one .npz of arrays "
    "feat_data, feat_indices, feat_indptr, feat_shape, edges, label, train_idx, val_idx and test_idx."
)
CLASSES = {
    "cora": (
        "Theory",
        "Reinforcement_Learning",
        "Genetic_Algorithms",
        "Neural_Networks",
        "Probabilistic_Methods",
        "Case_Based",
        "Rule_Learning",
    ),
    "citeseer": ("AI", "ML", "IR", "DB", "Agents", "HCI"),
}
SPLITS = ("public", "random")


@dataclass(frozen=True)
class Planetoid:
    """Papers that cite each other, with the words of a paper as features and its field as class.

    Cora: 2,708 papers, 5,278 citations, 1,433 words, 7 classes. CiteSeer: 3,327 papers, 4,552 citations,
    3,703 words, 6 classes; 15 papers have neither words nor class and are in no split.

    Parameters
    ----------
    name : {"cora", "citeseer"}
        Which network.
    split : {"public", "random"}
        Train on 20 papers of each class, validate on 500 and test on 1,000, with all others there as
        neighbours only; or leave it to the scenario to hold some of all papers out.
    normalise : bool
        Divide each paper's features by their sum, as is usual.
    root : str, Path or None
        Data folder; its folder ``planetoid`` holds ``cora.npz`` and ``citeseer.npz``.

    Notes
    -----
    Split of Yang, Cohen and Salakhutdinov, "Revisiting Semi-Supervised Learning with Graph Embeddings", 2016.
    """

    name: str = "cora"
    split: str = "public"
    normalise: bool = True
    root: str | Path | None = None

    def __post_init__(self) -> None:
        check_choice("name", self.name, tuple(CLASSES))
        check_choice("split", self.split, SPLITS)
        check_flag("normalise", self.normalise)

    def load(self) -> GraphDataset:
        """Read the file.

        Raises
        ------
        ScenarioError
            Where it is missing or damaged.
        """
        from scipy import sparse

        path = find(self.name, self.root, f"planetoid/{self.name}.npz", SOURCE)
        try:
            with np.load(path) as file:
                rows = tuple(file[f"feat_{part}"] for part in ("data", "indices", "indptr"))
                x = sparse.csr_array(rows, shape=tuple(file["feat_shape"])).toarray().astype(np.float32)
                y, edges = file["label"].astype(np.int64), file["edges"]
                splits = {part: file[f"{part}_idx"] for part in ("train", "val", "test")}
        except (*ARCHIVE_ERRORS, ValueError, KeyError) as error:
            raise broken(path, f"not the arrays of a network ({error})") from error
        classes = CLASSES[self.name]
        if y.shape != (len(x),) or y.max(initial=0) >= len(classes) or edges.max(initial=0) >= len(x):
            raise broken(path, f"labels or edges are not of {len(x)} papers and {len(classes)} classes")
        if self.normalise:
            x /= np.maximum(x.sum(axis=1, keepdims=True), 1)  # words are 0 or 1
        ends = (edges[:, 0], edges[:, 1])
        return node_dataset(self.name, x, y, ends, classes, splits=splits if self.split == "public" else None)
