"""``fedbench new``: what it writes works as it is, and nothing of the user's is written over."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedbench.cli import main
from fedbench.commands import new

ROOT = Path(__file__).parents[2]
GROUPS = {"strategy": "strategy", "model": "client", "data": "data", "skew": "scenario"}
# A name of one word, one of several, one with a digit, and one whose words are parted by two signs.
NAMES = {"strategy": "half_step", "model": "widenet", "data": "two_rings2", "skew": "great__fans"}
CLASSES = {"strategy": "HalfStep", "model": "Widenet", "data": "TwoRings2", "skew": "GreatFans"}


def written(kind, name, root):
    return [root / f"{name}.py", root / f"conf/{GROUPS[kind]}/{name}.yaml", root / f"test_{name}.py"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with one of each kind."""
    root = tmp_path_factory.mktemp("project")
    for kind, name in NAMES.items():
        assert main(["new", kind, name, "--into", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def results(project):
    """What the written tests say, all in one process."""
    words = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("new")  # for `results`, which takes a while, to be made once
@pytest.mark.parametrize("kind", GROUPS)
def test_the_written_tests_pass_and_run_it(kind, results):
    lines = [line for line in results.splitlines() if f"test_{NAMES[kind]}.py::" in line]
    passed = [line for line in lines if line.startswith("PASSED")]
    assert len(passed) >= 4, results
    assert lines == passed, results


@pytest.mark.parametrize("kind", GROUPS)
def test_three_files_are_written_and_the_next_line_runs(kind, here, capsys):
    name = f"first_{kind}"
    assert main(["new", kind, name]) == 0
    out = capsys.readouterr().out.splitlines()
    files = written(kind, name, here)
    assert out[:3] == [f"wrote {path.relative_to(here)}" for path in files]
    assert sorted(path for path in here.rglob("*") if path.is_file()) == sorted(files)
    start = "next: fedbench "
    assert out[3].startswith(start)
    assert out[4:] == [f"test: python -m pytest test_{name}.py"]
    small = ["rounds=1", "client.steps=2", "engine=serial", "run_dir=out"]
    assert main([*out[3].removeprefix(start).split(), *small]) == 0
    assert name in "".join(path.read_text() for path in (here / "out").rglob("summary.json"))


@pytest.mark.parametrize("kind", GROUPS)
def test_the_yaml_file_says_what_it_is_and_names_the_class(kind, project, capsys):
    assert main(["list", GROUPS[kind], "--config-dir", str(project / "conf")]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.split()[:1] == [NAMES[kind]]]
    assert len(line) > 30
    python, yaml, _ = written(kind, NAMES[kind], project)
    assert f"class {CLASSES[kind]}" in python.read_text()
    assert f"_target_: {NAMES[kind]}.{CLASSES[kind]}\n" in yaml.read_text()


def test_what_is_written_is_clean(project):
    # Which imports are the user's own, ruff can only know where the project is.
    words = [
        "check",
        "--config",
        str(ROOT / "pyproject.toml"),
        "--extend-ignore",
        "I001,D103,ARG005",
        "--no-cache",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "."], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    words = ["format", "--check", "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "."], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_into_makes_the_directory_and_the_next_line_goes_there(here, capsys):
    assert main(["new", "skew", "third", "--into", "my work/deep"]) == 0
    assert all(path.exists() for path in written("skew", "third", here / "my work/deep"))
    assert "next: cd 'my work/deep' && fedbench run --config-dir conf scenario=third" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_written_over(which, link, here, capsys):
    path = written("strategy", "mine", here)[which]
    path.parent.mkdir(parents=True, exist_ok=True)
    if link:
        path.symlink_to("nowhere")
    else:
        path.write_text("precious")
    before = sorted(here.rglob("*"))
    assert main(["new", "strategy", "mine"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{path.relative_to(here)} exists already and stays as it is" in err
    assert sorted(here.rglob("*")) == before
    assert link or path.read_text() == "precious"


def test_a_file_that_comes_up_meanwhile_is_not_written_over_and_leaves_no_others(here):
    late = here / "b.py"
    late.write_text("precious")
    with pytest.raises(new.UserError, match=r"b\.py: cannot be written \(File exists\)"):
        new._write({here / "a.py": "mine", late: "mine", here / "c.py": "mine"})
    assert sorted(path.name for path in here.iterdir()) == ["b.py"]
    assert late.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "Half-Step",
            "'Half-Step': must be a word of lower-case letters, digits and underscores, a letter first; "
            "did you mean 'half_step'?",
        ),
        ("halfStep", "did you mean 'half_step'?"),
        ("_hidden", "did you mean 'hidden'?"),
        ("2fast", "did you mean 'my_2fast'?"),
        ("lambda", "did you mean 'my_lambda'?"),
        ("null", "did you mean 'my_null'?"),
        ("größe", "did you mean 'gr_e'?"),
        ("../up", "did you mean 'up'?"),
        ("", "'': must be a word of lower-case letters, digits and underscores, a letter first\n"),
        ("fedprox", "strategy=fedprox exists already; did you mean 'my_fedprox'? (`fedbench list strategy`"),
        ("json", "'json' is a Python module already, which yours would hide; did you mean 'my_json'?"),
        ("torch", "'torch' is a Python module already"),
        ("strategies", "'strategies' is a Python module already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_line(name, said, here, capsys):
    assert main(["new", "strategy", name]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert not list(here.iterdir())


def test_a_kind_that_is_not_there_names_those_that_are(here, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["new", "strateg", "mine"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert all(kind in err.splitlines()[-1] for kind in GROUPS)


def test_a_directory_that_cannot_be_is_one_line(here, capsys):
    (here / "file").write_text("x")
    assert main(["new", "data", "mine", "--into", "file"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "cannot be written (" in err


@pytest.mark.slow
def test_templates_are_in_the_wheel(tmp_path):
    words = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "-w", str(tmp_path)]
    subprocess.run(words, check=True, timeout=300, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (wheel,) = tmp_path.glob("fedbench-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("fedbench/templates/")}
    expected = {
        f"fedbench/templates/{kind}{end}.tmpl" for kind in GROUPS for end in (".py", ".yaml", "_test.py")
    }
    assert inside == expected
