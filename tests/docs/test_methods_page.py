"""The page of methods says what the methods say, and each says all that a reader needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedbench.config.compose import choices

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import build_methods


def test_the_page_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs/build_methods.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(set(choices("strategy")) - {"ggeur"}))
def test_a_method_says_where_it_comes_from_and_what_it_costs(name):
    section = "\n".join(build_methods.entry(name, "x"))
    for field in ("Paper", "Sent", "Costs", "Helps"):
        text = section.partition(f"- **{field}:** ")[2].partition("\n")[0]
        assert len(text) > 10, field


def test_roles_become_markdown():
    assert build_methods.as_markdown("Step :math:`x^2`\n by :class:`flwr.X` and ``y``") == (
        "Step $x^2$ by `flwr.X` and `y`"
    )
