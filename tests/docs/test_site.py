"""The documentation site builds without a warning, and shows what it should."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("site"),
    pytest.mark.skipif(
        not all(map(find_spec, ("mkdocs", "material", "mkdocstrings", "latex2mathml"))),
        reason="the site needs MkDocs: pip install '.[docs]'",
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(node):
    """All pages of a navigation tree."""
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node
    return [page for child in children for page in pages(child)]


def test_every_page_is_in_the_navigation_and_in_the_site(site):
    text = re.sub(
        r"^(markdown_extensions|plugins):.*?(?=^\w|\Z)",
        "",
        (ROOT / "mkdocs.yml").read_text(),
        flags=re.M | re.S,
    )
    named = pages(yaml.safe_load(text)["nav"])
    assert sorted(named) == sorted(str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md"))
    for page in named:
        assert (site / page.removesuffix("index.md").removesuffix(".md") / "index.html").is_file()


@pytest.mark.parametrize(
    ("page", "names"),
    [
        (
            "strategies",
            [
                "strategies.local.LocalRule.gradient",
                "strategies.method.Method.combine",
                "strategies.scaffold.Scaffold",
            ],
        ),
        ("clients", ["clients.models.mlp.MLP", "clients.tasks.base.Task.scores"]),
        ("scenarios", ["scenarios.skews.quantity_skew.QuantitySkew", "scenarios.federation.Dataset"]),
        (
            "fedbench",
            [
                "fedbench.config.compose.plan",
                "fedbench.engine.ray.RayGrid",
                "fedbench.report.statistics.paired",
            ],
        ),
    ],
)
def test_the_api_is_there_in_markdown(site, page, names):
    html = (site / "api" / page / "index.html").read_text()
    for name in names:
        assert f'id="{name}"' in html
    assert not re.search(r":(math|class|meth|func|mod):", html)


def test_every_strategy_file_is_in_the_api(site):
    html = (site / "api/strategies/index.html").read_text()
    methods = {
        f"strategies.{name}"
        for name in re.findall(r"`strategies/(\w+)(?:\.py|/)", (ROOT / "docs/methods.md").read_text())
    }
    assert len(methods) > 20
    assert {name for name in methods if f'id="{name}"' not in html} == set()


def test_formulas_need_no_script_and_no_page_asks_others_for_anything(site):
    html = (site / "methods/index.html").read_text()
    assert html.count("<math") > 5
    assert "arithmatex" not in html
    for path in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="?https?://', path.read_text()), path
