"""What a shell offers after TAB, asked as the shells ask, and in bash itself."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from fedbench.cli import main
from fedbench.config.compose import GROUPS, choices, plan, settings
from fedbench.config.schema import RunConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def offered(capsys):
    """Completions of a command line, through the command that the scripts call."""

    def ask(line):
        assert main(["completion", f"--words={line}"]) == 0
        return capsys.readouterr().out.splitlines()

    return ask


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment whose ``fedbench`` is the code under test."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "fedbench"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedbench "$@"\n')
    program.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TERM": "dumb"}


@pytest.mark.parametrize(
    ("line", "words"),
    {
        "fedbench re": ["resume", "report"],
        "  fedbench   doc": ["doctor"],
        "fedbench nothing ": [],
        "fedbench run --c": ["--config-dir", "--cfg"],
        "fedbench compare --at ": ["final", "last_5", "best_validation"],
        "fedbench compare --at last": ["last_5"],
        "fedbench compare runs/": [],
        "fedbench run --config-dir ": [],
        "fedbench completion ": ["bash", "zsh", "fish"],
        "fedbench completion --w": [],
        "fedbench list align": ["align"],
        "fedbench run sc": ["scenario="],
        "fedbench run -m see": ["seed="],
        "fedbench run seed=": [],
        "fedbench run fast=": ["fast=true", "fast=false"],
        "fedbench run nothing.": [],
        "fedbench run nothing=": [],
        "fedbench run strategy=sca": ["strategy=scaffold"],
        "fedbench run -m strategy=fedavg,sca": ["strategy=fedavg,scaffold"],
        "fedbench run -m strategy=fedavg,krum,fedav": [
            "strategy=fedavg,krum,fedavg_ft",
            "strategy=fedavg,krum,fedavgm",
        ],
        "fedbench run strategy=fedprox strategy.pro": ["strategy.proximal_mu="],
        "fedbench run strategy=moon strategy.pro": [],
        "fedbench run scenario=domain_skew scenario.blocks=t": ["scenario.blocks=true"],
    }.items(),
)
def test_words_are_completed(offered, line, words):
    assert offered(line) == words


def test_every_group_key_and_choice_is_offered(offered):
    keys = {field.name for field in fields(RunConfig)} - {"sweep"} | set(GROUPS)
    assert set(offered("fedbench run ")) == {f"{key}=" for key in keys}
    assert set(offered("fedbench list ")) == set(GROUPS)
    for group in GROUPS:
        assert offered(f"fedbench run {group}=") == [f"{group}={name}" for name in choices(group)]


@pytest.mark.parametrize(
    "chosen", ["strategy=fedavg", "strategy=fedadam_cosine client=cnn", "strategy=fedavg data=xmarket"]
)
def test_the_options_offered_are_those_of_what_is_chosen(offered, chosen):
    composed = {key for key in settings(plan(chosen.split())[0]) if not key.endswith("_target_")}
    for group in ("scenario", "data", "client", "strategy"):
        options = {key for key in composed if key.startswith(f"{group}.")}
        assert options
        assert {word[:-1] for word in offered(f"fedbench run {chosen} {group}.")} == options


def test_choices_of_the_users_own_are_offered(offered, tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy/mine.yaml").write_text("# Mine\ndefaults:\n  - fedprox\n  - _self_\nbold: true\n")
    (tmp_path / "strategy/broken.yaml").write_text("a: [\n")
    line = f"fedbench run --config-dir {tmp_path}"
    assert offered(f"{line} strategy=mi") == ["strategy=mine"]
    assert offered("fedbench run strategy=mi") == []
    assert {"strategy.bold=", "strategy.proximal_mu="} <= set(offered(f"{line} strategy=mine strategy."))
    assert offered(f"{line} strategy=mine strategy.bold=f") == ["strategy.bold=false"]
    assert offered(f"{line} strategy=broken strategy.") == []


def test_an_answer_is_quick_and_loads_nothing_heavy(environment):
    heavy = ["torch", "flwr", "ray", "hydra", "numpy", "rich", "sklearn"]
    for line in ("fedbench run strategy=fedavg,sca", "fedbench run rou", "fedbench run client."):
        code = f"""
import sys, time
started = time.perf_counter()
from fedbench.cli import main
main(["completion", "--words={line}"])
print(time.perf_counter() - started, [name for name in {heavy} if name in sys.modules])
"""
        seconds = []
        for _ in range(3):
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            *words, last = done.stdout.splitlines()
            assert words
            took, _, loaded = last.partition(" ")
            assert loaded == "[]"
            seconds.append(float(took))
        assert min(seconds) < 0.5


def test_a_shell_must_be_named(capsys):
    assert main(["completion"]) == 2
    err = capsys.readouterr().err
    assert err == "fedbench: completion: name the shell to complete in, one of: bash, zsh, fish\n"
    with pytest.raises(SystemExit) as stopped:
        main(["completion", "tcsh"])
    assert stopped.value.code == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


# --- in the shells ---------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "replies"),
    [
        (["ru"], ["run"]),
        (["run", "strategy", "=", "fedavg,sca"], ["fedavg,scaffold"]),
        (["run", "scenario", "=", "label"], ["label_domain_skew", "label_shards", "label_skew"]),
        (["run", "engine", "="], ["ray", "serial"]),
        (["run", "strategy=fedavg", "rou"], ["rounds="]),
        (["run", "data.root", "=", "/nowhere"], []),
    ],
)
def test_bash_puts_the_replies_where_it_replaces_a_word(environment, words, replies):
    line = "fedbench " + " ".join(words).replace(" = ", "=").replace(" =", "=")
    script = """
        source <(fedbench completion bash)
        line=$1; shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE=$line COMP_POINT=${#line}
        _fedbench
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", script, "bash", line, "fedbench", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == replies
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("fedbench run -m strategy=fedavg,sca\t", "strategy=fedavg,scaffold "),
        ("OMP_NUM_THREADS=1 fedbench run rou\t3", "run rounds=3"),
        ("fedbench run data.root=/us\t", "data.root=/usr/"),
    ],
)
def test_bash_completes_what_is_typed(environment, typed, shown):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("bash", ["bash", "--norc", "-i"], environment | {"PS1": "$ "})
    try:
        os.write(terminal, b"source <(fedbench completion bash); echo rea''dy\n")
        assert "ready\r\n" in read_until(terminal, "ready\r\n")
        os.write(terminal, typed.encode())
        assert shown in read_until(terminal, shown)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal, text, seconds=30):
    """What a terminal shows until a text is there, or the time is up."""
    shown, end = "", time.monotonic() + seconds
    while text not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 1 << 16).decode()
    return shown


@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_the_script_is_one_of_its_shell(shell, check, tmp_path, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert "fedbench" in script.read_text()
    subprocess.run([shell, check, script], check=True)
