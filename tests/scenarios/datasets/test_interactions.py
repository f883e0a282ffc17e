import gzip

import pytest

from scenarios import ScenarioError
from scenarios.datasets.interactions import Interactions

HEADER = "who,what,when,kind,shop"
LINES = [
    f"{who},{what},{60 * 60 * when},{what.upper()},s" for who in "xy" for when, what in enumerate("abcdef")
]
COLUMNS = {"user": "who", "item": "what", "time": "when"}


def load(folder, lines, header=HEADER, packed=False, **options):
    content = ("\n".join([header, *lines]) + "\n").encode()
    path = folder / ("events.csv.gz" if packed else "events.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    return Interactions(path=path, **{**COLUMNS, **options}).load()


def test_names_become_numbers_and_seconds_become_days(tmp_path):
    data = load(tmp_path, LINES, packed=True, category="kind", market="shop")
    assert data.shared["item"].tolist() == [*range(1, 7)] * 2
    assert data.shared["time"].tolist() == pytest.approx([hour / 24 for hour in range(6)] * 2)
    assert data.shared["category"].tolist() == [*range(7)]
    assert data.meta.strata == ("A",)
    assert data.domains == ("s",)
    assert (len(data.val), len(data.test)) == (2, 2)


def test_dates_are_brought_to_utc(tmp_path):
    stamps = ("2024-01-01", "2024-01-02T00:00", "2024-01-02T14:00+02:00", "2024-01-04 12:00:00Z")
    dates = [f"u,i{n},{stamp}" for n, stamp in enumerate((*stamps, "2024-01-05"))]
    data = load(tmp_path, dates, "who,what,when")
    assert data.shared["time"].tolist() == pytest.approx([0, 1, 1.5, 3.5, 4])
    assert data.domains == ("all",)


def test_a_user_of_two_marketplaces_is_two(tmp_path):
    lines = [*LINES, *(line.replace(",s", ",t") for line in LINES)]
    data = load(tmp_path, lines, market="shop")
    assert data.users == 4
    assert data.domains == ("s", "t")
    assert data.domain[data.test].tolist() == [0, 0, 1, 1]


def test_an_item_may_have_no_category_but_not_two(tmp_path):
    lines = [line.replace("A,", ",").replace("B,", "C,") for line in LINES]
    data = load(tmp_path, lines, category="kind")
    assert data.shared["category"].tolist() == [0, 0, 1, 1, 2, 3, 4]
    lines = [*LINES[:8], "y,c,9,D,s", *LINES[9:]]
    with pytest.raises(ScenarioError, match=r"line 10, column 'kind': must be the category .*, got 'D'$"):
        load(tmp_path, lines, category="kind")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (",b,7,B,s", "column 'who': must not be empty, got ''"),
        ("x,b,soon,B,s", "column 'when': must be seconds, as on the first line, got 'soon'"),
        ("x,b,,B,s", "column 'when': must be seconds, as on the first line, got ''"),
        ("x,b,inf,B,s", "column 'when': must be seconds, as on the first line, got 'inf'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, line, message):
    with pytest.raises(ScenarioError, match=rf"events.csv, line 5, {message}$"):
        load(tmp_path, [*LINES[:2], "", line, *LINES[4:]])


def test_a_wrong_date_is_named_with_its_line(tmp_path):
    with pytest.raises(
        ScenarioError, match=r"line 3, column 'when': must be seconds or a date such as .*'May'$"
    ):
        load(tmp_path, ["u,i,2024-01-01", "u,j,May"], "who,what,when")


def test_a_missing_file_or_column_is_named(tmp_path):
    with pytest.raises(ScenarioError, match=r"events.csv: has no column 'whn'; did you mean 'when'\?$"):
        load(tmp_path, LINES, time="whn")
    with pytest.raises(ScenarioError, match=r"has no column 'category'; it has who, what, when, kind, shop$"):
        load(tmp_path, LINES, category="category")
    with pytest.raises(ScenarioError, match=r"events.csv: has no line below"):
        load(tmp_path, [])
    with pytest.raises(ScenarioError, match=r"^data 'interactions': no file ''; set data.path to a CSV file"):
        Interactions().load()
    with pytest.raises(ValueError, match=r"^item: column 'user' is user already; use another"):
        Interactions(item="user")
    with pytest.raises(ValueError, match=r"^market: not a name, got ''"):
        Interactions(market="")
