"""What the pages tell a reader to write and to run is written and run, as small as it gets."""

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedbench.cli import main
from fedbench.engine.serial import SerialGrid

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(
    str(path.relative_to(DOCS))
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*/*.md")]
    if path.name != "methods.md"
)
ADDING = {
    "how-to/add-a-strategy.md": "strategy",
    "how-to/add-a-model.md": "client",
    "how-to/add-a-data-set.md": "data",
    "how-to/add-a-skew.md": "scenario",
}
SMALL = {"engine": "serial", "rounds": "1", "client.steps": "2"}
"""What runs of the pages are made small with, whatever they ask for."""
NOT_RUN = ("make", "pip", "python -m venv", "export", "flwr", "ray start", "fedbench resume")
"""How lines of ``console`` blocks begin: they install, wait for others, or need what no page makes."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is, and its text."""

    language: str
    title: str
    text: str

    @property
    def lines(self):
        return [line for line in self.text.splitlines() if line]


def blocks(page):
    found = re.findall(r"^```(\w*)(?: title=\"(.*?)\")?\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)
    return [Block(*each) for each in found]


def write(block, folder):
    path = folder / block.title
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)


def made_small(words):
    """The words of a command; a run that is not only printed becomes small and stays in this process."""
    if words[0] not in ("run", "compare") or "--cfg" in words or not any("=" in w for w in words):
        return words
    kept = [w for w in words if w.partition("=")[0] not in SMALL and not w.startswith("engine.")]
    kept = [re.sub(r"^seed=0,1,.*", "seed=0,1", w) for w in kept]
    return [*kept, *(f"{key}={value}" for key, value in SMALL.items())]


def follow(line, folder):
    """Run a line of a page in its folder."""
    words = shlex.split(line)
    if words[:3] == ["python", "-m", "pytest"]:
        assert (folder / words[3]).is_file()  # run below, those of all pages at once
        return
    if words[0] == "python" and words[1] != "-m":
        done = subprocess.run([sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    assert words[0] == "fedbench", line
    try:
        assert main(made_small(words[1:])) == 0, line
    finally:
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_can_be_done(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.title:
            write(block, tmp_path)
        elif block.language == "bash":
            for line in block.lines:
                follow(line, tmp_path)
        elif block.language == "console":
            assert all(line.startswith(NOT_RUN) for line in block.lines)
        else:
            assert block.language == "text"
    assert "Traceback" not in capsys.readouterr().err


def test_there_are_pages_to_follow():
    assert {"index.md", "tutorial.md", "how-to/read-a-report.md", *ADDING} <= set(PAGES)
    lines = [line for page in PAGES for b in blocks(page) if b.language == "bash" for line in b.lines]
    assert len(lines) > 25
    # No command hides in a block that is not run.
    others = [
        line for page in PAGES for b in blocks(page) if b.language in ("text", "console") for line in b.lines
    ]
    found = [line for line in others if re.match(r"(fedbench|python -m (fedbench|pytest)) \w", line)]
    assert found == ["fedbench resume runs/20261124-120000"]


@pytest.mark.parametrize("page", ADDING)
def test_adding_takes_one_python_file_one_yaml_file_and_one_test(page):
    titles = [block.title for block in blocks(page) if block.title]
    name = titles[0].removesuffix(".py")
    assert titles == [f"{name}.py", f"conf/{ADDING[page]}/{name}.yaml", f"test_{name}.py"]
    # They are the files that the page's first command writes.
    first = next(block for block in blocks(page) if block.language == "bash")
    assert first.lines == [first.text.strip()]
    assert first.text.split()[-1] == name


@pytest.mark.slow
def test_the_pages_own_tests_pass(tmp_path):
    for number, page in enumerate(ADDING):
        for block in blocks(page):
            if block.title:
                write(block, tmp_path / str(number))
    words = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(len(ADDING)):
        assert len(re.findall(rf"^PASSED {number}/test_", done.stdout, re.M)) >= 3, done.stdout


def test_the_code_of_the_pages_is_clean(tmp_path):
    root = DOCS.parent
    for number, page in enumerate(PAGES):
        for block in blocks(page):
            if block.language == "python":
                write(block, tmp_path / str(number))
    # What a project asks of its own code is its own matter: docstrings, and which imports are its own.
    ignored = "D,I001,ARG,PT018"
    common = ["--config", str(root / "pyproject.toml"), "--no-cache", "."]
    for words in (["check", "--extend-ignore", ignored], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *words, *common]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_other_flower_project_learns(tmp_path, monkeypatch, capsys):
    for block in blocks("how-to/use-strategies-elsewhere.md"):
        if block.title:
            write(block, tmp_path)
    app = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"] == {
        "serverapp": "digits_app.server_app:app",
        "clientapp": "digits_app.client_app:app",
    }
    monkeypatch.syspath_prepend(tmp_path)
    from digits_app import client_app, server_app

    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=app["config"])
    server_app.app(SerialGrid(lambda: client_app.app, [1, 1, 1]), context)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("round 5: accuracy ")
    # Three nodes with three or four digits each: a model that knows one node's digits has a third.
    assert float(last.split()[-1]) > 0.6
    for name in [name for name in sys.modules if name.startswith("digits_app")]:
        del sys.modules[name]
