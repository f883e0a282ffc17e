"""CSV files as people have them."""

import gzip

import numpy as np
import pytest

from scenarios import ScenarioError
from scenarios.datasets.csv_series import CsvSeries

HEADER = "date,load,price"
LINES = [f"2024-01-{1 + h // 24:02} {h % 24:02}:00,{h},{h * h}" for h in range(40)]


def content(lines, header=HEADER):
    return ("\n".join([header, *lines]) + "\n").encode()


def load(folder, **options):
    given = {"seq_len": 3, "pred_len": 1, "target": "price", "levels": 2}
    return CsvSeries(path=folder, **{**given, **options}).load()


def test_names_of_files_may_hold_dots(tmp_path):
    (tmp_path / "plant.1.csv").write_bytes(content(LINES))
    (tmp_path / "plant.2.csv.gz").write_bytes(gzip.compress(content(LINES)))
    assert load(tmp_path).domains == ("plant.1", "plant.2")
    (tmp_path / "plant.1.csv.gz").write_bytes(gzip.compress(content(LINES)))
    with pytest.raises(ScenarioError, match=r"two series are named 'plant.1'"):
        load(tmp_path)


def test_blank_lines_are_passed_over_and_counted(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(content([*LINES[:2], "", *LINES[2:], "", ""]))
    assert load(tmp_path).shared["series"].shape == (40, 2)
    lines = [*LINES[:2], "", *LINES[2:5], "2024-01-01 05:00,x,25", *LINES[6:]]
    assert content(lines).splitlines()[8 - 1] == b"2024-01-01 05:00,x,25"
    file.write_bytes(content(lines))
    with pytest.raises(ScenarioError, match=r"a.csv, line 8, column 'load': must be a number.* 'x'$"):
        load(tmp_path)
    file.write_bytes(content([*LINES[:2], ",,", *LINES[2:]]))
    with pytest.raises(ScenarioError, match=r"a.csv, line 4, column 'load': must be a number.* ''$"):
        load(tmp_path)


@pytest.mark.filterwarnings("error")
def test_times_with_an_offset_are_told_apart_when_clocks_are_set_back(tmp_path):
    """The hour from two to three comes twice in local time."""
    stamps = [f"2024-10-27 {h:02}:00+02:00" for h in range(3)]
    stamps += [f"2024-10-27 {h:02}:00+01:00" for h in range(2, 24)]
    plain = [f"2024-10-{26 if h < 2 else 27} {(h + 22) % 24:02}:00" for h in range(25)]
    marks = []
    for times in (stamps, plain):
        (tmp_path / "a.csv").write_bytes(content([f"{t},{i},{i}" for i, t in enumerate(times)]))
        marks.append(load(tmp_path).shared["marks"])
    np.testing.assert_array_equal(*marks)


def test_a_damaged_archive_is_named(tmp_path):
    packed = bytearray(gzip.compress(content(LINES)))
    packed[30:60] = b"\xff" * 30
    (tmp_path / "a.csv.gz").write_bytes(packed)
    with pytest.raises(ScenarioError, match=r"a.csv.gz: cannot be read as CSV \("):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exogenous": "load"}, r"^exogenous: not a list of columns, got 'load'; use \['load'\]"),
        ({"exogenous": ["load", "price"]}, r"^exogenous: 'price' is the target"),
        ({"exogenous": ["date"]}, r"^exogenous: 'date' is the time"),
        ({"exogenous": ["load", "load"]}, r"^exogenous: 'load' is named twice"),
        ({"time": "price"}, r"^time: 'price' is the target"),
    ],
)
def test_a_column_has_one_part_only(options, message):
    with pytest.raises(ValueError, match=message):
        CsvSeries(path="x", target="price", **options)
