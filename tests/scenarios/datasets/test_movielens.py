import gzip
import shutil

import numpy as np
import pandas as pd
import pytest

from scenarios import ScenarioError
from scenarios.datasets.movielens import Movielens


@pytest.fixture(scope="module")
def ratings(data_root):
    return pd.read_csv(data_root / "movielens_latest_small/ratings.csv.gz")


def test_counts_and_genres_are_those_of_the_files(data_root, ratings):
    data = Movielens(root=data_root, core=0).load()
    assert len(data.shared["item"]) == 100_836
    assert (data.facts["users"], data.facts["items"]) == (610, 9_724)
    movies = pd.read_csv(data_root / "movielens_latest_small/movies.csv.gz").set_index("movieId")
    first = movies["genres"].loc[ratings["movieId"]].str.split("|").str[0]
    seen = np.bincount(data.shared["category"][data.shared["item"]])
    assert seen[0] == 0
    assert seen[1:].tolist() == first.value_counts().sort_index().tolist()
    assert len(seen) == 20
    assert "Drama" in data.meta.strata
    assert data.domains == ("movielens",)


def test_a_core_of_five_in_order_of_time_and_in_weeks(data_root, ratings):
    data = Movielens(root=data_root).load()
    table = ratings
    while True:
        kept = table[
            (table.groupby("movieId")["userId"].transform("size") >= 5)
            & (table.groupby("userId")["movieId"].transform("size") >= 5)
        ]
        if len(kept) == len(table):
            break
        table = kept
    assert len(data.shared["item"]) == len(table) == 90_274
    assert (data.facts["users"], data.facts["items"]) == (610, table["movieId"].nunique()) == (610, 3_650)
    table = table.sort_values(["userId", "timestamp"], kind="stable")
    weeks = (table["timestamp"] - table["timestamp"].min()) / 604_800
    names = table["userId"].astype(str).to_numpy()
    order = np.argsort(names, kind="stable")  # users are in the order of their names as text
    np.testing.assert_allclose(data.shared["time"], weeks.to_numpy()[order], atol=1e-6)
    films, ids = table["movieId"].to_numpy()[order], data.shared["item"]
    assert len(set(zip(films.tolist(), ids.tolist(), strict=True))) == 3_650
    assert len(data.val) == len(data.test) == 610
    assert data.shared["popularity"].sum() == 90_274 - 2 * 610


def test_a_film_without_an_entry_is_named(data_root, tmp_path):
    folder = tmp_path / "movielens_latest_small"
    folder.mkdir()
    shutil.copy(data_root / "movielens_latest_small/ratings.csv.gz", folder)
    with pytest.raises(ScenarioError, match=r"^data 'movielens': nothing at .*movies.csv.gz"):
        Movielens(root=tmp_path).load()
    (folder / "movies.csv.gz").write_bytes(gzip.compress(b"movieId,title,genres\n1,Toy Story,Comedy\n"))
    with pytest.raises(ScenarioError, match=r"movies.csv.gz: has no film 10, which ratings.csv.gz has; "):
        Movielens(root=tmp_path).load()
