"""The page as a whole: what comes first, what is left out and why, that it is safe, small and alone."""

import base64
import io
import json
import re
import time
from importlib import resources

import pytest
from PIL import Image

from fedbench.cli import main
from fedbench.config.compose import plan
from fedbench.errors import UserError
from fedbench.report.html import render, write_report
from fedbench.report.html.gather import gather
from fedbench.report.html.page import script_json
from fedbench.report.html.pictures import WIDEST, Album
from fedbench.run import run

METHODS = ["fedavg", "fedprox", "scaffold", "moon", "feddyn", "fedavgm", "fedntd", "ggeur"]


def own(page):
    """The page without plotly."""
    scripts = re.split(r"(<script>)", page)
    longest = max(range(len(scripts)), key=lambda i: len(scripts[i]))
    return "".join(scripts[:longest]) + scripts[longest][-9:] + "".join(scripts[longest + 1 :])


def data_of(page):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def test_page_of_a_real_run_stands_alone(tmp_path, capsys):
    small = ["data=gaussian_domains", "data.domains=2", "client=linear", "client.steps=2", "rounds=2"]
    for config in plan([*small, "engine=serial", "strategy=fedavg,fedprox", "seed=0,1"], multirun=True):
        run(config, tmp_path / "runs" / f"{config.choices.strategy}-{config.seed}")
    target = tmp_path / "page.html"
    capsys.readouterr()
    assert main(["report", str(tmp_path / "runs"), "-o", str(target)]) == 0
    said = capsys.readouterr().out.splitlines()
    page = target.read_text()
    assert "fedprox" in said[0]
    assert page.index(said[0].split(",")[0]) < page.index("<table")
    for part in (
        "Verdict",
        "Learning curves",
        "By domain",
        "Score against cost",
        "Environment",
        "who holds what",
    ):
        assert part in page
    assert page.count("plotly.js v") == 1
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", own(page))


def test_120_runs_stay_below_12_megabytes(tmp_path, sweep):
    small = ["data=gaussian_domains", "data.domains=4", "client=linear", "client.steps=2", "rounds=30"]
    (config,) = plan([*small, "scenario=domain_skew", "scenario.clients_per_domain=5", "engine=serial"])[:1]
    real = run(config, tmp_path / "real")
    split = (tmp_path / "real/split.png").read_bytes()
    runs = sweep(real, METHODS, ["domain_skew", "label_skew", "quantity_skew"], 5)
    for number, summary in enumerate(runs):
        directory = tmp_path / "runs" / f"{number:03d}"
        directory.mkdir(parents=True)
        (directory / "summary.json").write_text(json.dumps(summary))
        (directory / "split.png").write_bytes(split)
        (directory / "forecasts.png").write_bytes(split)
    started = time.perf_counter()
    write_report([tmp_path / "runs"], tmp_path / "page.html")
    size = (tmp_path / "page.html").stat().st_size
    print(f"120 runs: {time.perf_counter() - started:.1f} s, {size / 1e6:.1f} MB")
    assert size < 12e6
    assert "120 runs, 8 methods, 3 settings, 5 seeds each" in (tmp_path / "page.html").read_text()


def test_settings_are_apart_and_ranked_together(write, made_up, sweep):
    runs = sweep(made_up(), ["fedavg", "moon", "ggeur"], ["iid", "label_skew"], 3)
    material = gather([write(*runs)])
    (section,) = material.sections
    assert [s.name for s in section.settings] == ["digits, iid", "digits, label_skew"]
    page = render(material)
    assert "s0-cd" in data_of(page)["figures"]
    assert page.count('class="lead"') == 1
    assert page.index('id="s0-verdict"') < page.index("Average ranks") < page.index('id="s0-0"')


def test_metrics_are_apart(write, made_up):
    error = made_up(headline="mse", higher_is_better=False)
    page = render(gather([write(made_up(), error)]))
    assert "Verdict: accuracy" in page
    assert "Verdict: mse" in page
    assert page.count('class="lead"') == 2


def test_settings_of_one_name_are_told_apart_by_what_differs(write, made_up):
    runs = [made_up(), made_up()]
    runs[1]["settings"] |= {"scenario.clients": 9, "data.root": "/elsewhere"}
    (section,) = gather([write(*runs)]).sections
    names = [s.name for s in section.settings]
    assert names == ["digits, iid (scenario.clients=4)", "digits, iid (scenario.clients=9)"]


def test_methods_of_one_name_are_told_apart(write, made_up):
    runs = [made_up(), made_up(), made_up("moon")]
    runs[1]["settings"]["client.lr"] = 0.5
    material = gather([write(*runs)])
    assert material.methods == ["fedavg (client.lr=0.1)", "fedavg (client.lr=0.5)", "moon"]
    assert material.sections[0].settings[0].baseline == "fedavg (client.lr=0.1)"


def test_what_is_in_no_table_is_listed_with_the_reason(write, made_up):
    folder = write(
        made_up("fedavg", 0),
        made_up("fedavg", 1),
        made_up("fedavg", 1),
        made_up("moon", 0),
        made_up("moon", 1, status="failed"),
        made_up("ggeur", 0, final=None, history=[]),
    )
    (folder / "004" / "log.txt").write_text("INFO\nERROR client 3: <b>no memory</b>\n")
    (folder / "begun").mkdir()
    (folder / "begun" / "config.yaml").write_text("")
    (folder / "broken").mkdir()
    (folder / "broken" / "summary.json").write_text("{")
    material = gather([folder])
    why = {t.run.rpartition("/")[2] or t.label: t.why for t in material.troubles}
    assert why["002"].startswith("the same run as")
    assert why["004"] == "failed in round 4: ERROR client 3: <b>no memory</b>"
    assert why["005"] == "never evaluated"
    assert why["begun"].startswith("unfinished")
    assert "not valid JSON" in why["broken"]
    assert why["moon"] == "no result for seed 1, which other methods have"
    assert material.runs == 3
    page = own(render(material))
    assert "&lt;b&gt;no memory" in page
    assert "<b>no memory" not in page


def test_one_run_is_a_report_without_claims(write, made_up):
    page = own(render(gather([write(made_up())])))
    assert "fedavg alone has results" in page
    assert "Against" not in page
    assert "Nothing differs but the seed." in page


def test_runs_without_clients_or_validation_rows_are_shown(write, made_up):
    run = made_up(best_validation=None)
    run["final"] |= {"clients": {}, "mean_client": None, "worst_client": None}
    page = render(gather([write(run)]))
    assert list(data_of(page)["figures"]) == ["s0-0-curves", "s0-0-domains"]
    assert "best round on validation rows" not in own(page)


def test_text_of_users_ends_no_element(write, made_up):
    evil = '</script><img src=x onerror="alert(1)">'
    page = own(render(gather([write(made_up(evil), made_up("moon"))])))
    assert "<img src=x" not in page
    assert data_of(page)["methods"][0] == evil
    assert "<" not in script_json({"a": "</script><!--"})


def test_baseline_is_chosen_by_name(write, made_up):
    folder = write(made_up("fedavg"), made_up("moon"))
    assert gather([folder], "moon").methods == ["moon", "fedavg"]
    with pytest.raises(UserError, match="--baseline mon: no such method in these runs; did you mean 'moon'"):
        gather([folder], "mon")


@pytest.mark.parametrize(
    ("output", "overlap", "match"),
    [
        ("no/such/x.html", 0.0, "folder that exists"),
        (".", 0.0, "folder that exists"),
        ("x.html", -1, "--overlap"),
    ],
)
def test_mistakes_are_told_in_a_line(write, made_up, tmp_path, output, overlap, match):
    with pytest.raises(UserError, match=match):
        write_report([write(made_up())], tmp_path / output, overlap=overlap)


def test_nothing_to_report_is_said(write, made_up):
    with pytest.raises(
        UserError, match="none of 1 runs has a result to report; the first: failed in round 4"
    ):
        gather([write(made_up(status="failed"))])


def test_pictures_shrink_and_stop_at_the_limit(write, made_up):
    folder = write(made_up())
    Image.new("RGB", (3 * WIDEST, 300), "red").save(folder / "000" / "split.png")
    (folder / "000" / "forecasts.png").write_text("no picture")
    setting = gather([folder]).sections[0].settings[0]
    ((caption, uri),) = Album().pictures(setting)
    assert caption == "who holds what, seed 0"
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (WIDEST, 100)
    ((caption, uri),) = Album(left=10).pictures(setting)
    assert uri is None
    assert "left out for size" in caption


@pytest.mark.parametrize("name", ["page.html", "page.css", "page.js", "downloads.js"])
def test_pieces_are_part_of_the_package(name):
    piece = resources.files("fedbench.report.html").joinpath(name).read_text()
    assert "://" not in piece
