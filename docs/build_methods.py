"""Write ``docs/methods.md`` from what the methods say of themselves.

The head of a method's YAML file has its summary, and lines ``Family:``, ``Sent:``, ``Costs:`` and ``Helps:``;
the paper and the formulas are those of the docstrings of its file in ``strategies/``, or for Flower's own
strategies of a line ``Paper:``.

    python docs/build_methods.py            # writes the page
    python docs/build_methods.py --check    # exits with 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf

from fedbench.config.compose import CONFIG_DIR, choices
from fedbench.config.objects import load

PAGE = Path(__file__).with_name("methods.md")
FAMILIES = {
    "global": "One model for all clients",
    "asynchronous": "One model, moved whenever clients have answered",
    "personal": "A model for each client",
    "robust": "Robust averages",
}
FIELDS = ("Family", "Paper", "Sent", "Costs", "Helps")
INTRODUCTION = """\
# Methods

Made by `python docs/build_methods.py` from the head of each method's YAML file and the docstrings of its
Python file: change those, not this page.

`strategy=NAME` chooses a method. GGEUR goes around any of them with `align=ggeur`, a
personal part with `personalization=`, attacks come with
`attack=`, differential privacy with `privacy=`. "Sent" is what a client and the server exchange in a round,
in multiples of the model where that is clearer; "costs" compares one local step, and what is kept, with
FedAvg's.
"""


def head_of(name: str, group: str = "strategy") -> dict[str, str]:
    """Lines ``Field: text`` of a YAML file's head; a field goes on in lines indented by two more spaces."""
    fields: dict[str, str] = {}
    last = ""
    for line in (CONFIG_DIR / group / f"{name}.yaml").read_text().splitlines()[1:]:
        if not line.startswith("#"):
            break
        if found := re.match(r"# (\w+): (.*)", line):
            last, text = found[1], found[2]
            if last not in FIELDS:
                raise ValueError(f"{name}.yaml: no field '{last}'; one of {', '.join(FIELDS)}")
            fields[last] = text
        elif last:
            fields[last] += " " + line.removeprefix("#").strip()
    return fields


def classes_of(name: str, group: str = "strategy") -> Iterator[Any]:
    """The classes that a method's YAML file names, and the client half that goes with its server half."""
    config = OmegaConf.load(CONFIG_DIR / group / f"{name}.yaml")
    server = load(config["_target_"], name) if config["_target_"] else None
    if server is not None:
        yield server
    own = "rule" if group == "personalization" else "client_half"
    half = load(config["rule"]["_target_"], name) if "rule" in config else getattr(server, own, None)
    if half is not None:
        yield half


def summary_line(cls: type) -> str:
    """First paragraph of a class's docstring as Markdown."""
    text = inspect.getdoc(cls) or ""
    return as_markdown(text.split("\n\n")[0])


def as_markdown(text: str) -> str:
    """ReStructuredText roles as Markdown: mathematics in dollars, names in backticks."""
    text = " ".join(text.split())
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    return text.replace("``", "`")


def paper_of(module: ModuleType) -> str:
    """Second paragraph of a module's docstring: authors, title, where it appeared."""
    paragraphs = (module.__doc__ or "").strip().split("\n\n")
    return as_markdown(paragraphs[1]) if len(paragraphs) > 1 else ""


def entry(name: str, description: str, group: str = "strategy") -> list[str]:
    """The section of one method."""
    head = head_of(name, group)
    ours = [c for c in classes_of(name, group) if c.__module__.startswith("strategies.")]
    own = [c for c in ours if c.__module__ != "strategies.local"]
    lines = [f"### `{name}`", "", f"{description}.", ""]
    paper = head.get("Paper") or (paper_of(sys.modules[own[0].__module__]) if own else "")
    lines += [f"- **Paper:** {paper}"] if paper else []
    lines += [f"- **`{c.__name__}`** (`{c.__module__.replace('.', '/')}.py`): {summary_line(c)}" for c in own]
    theirs = [c for c in classes_of(name, group) if c.__module__.startswith("flwr.")]
    lines += [f"- **Server half:** Flower's `flwr.serverapp.strategy.{c.__name__}`" for c in theirs]
    lines += [f"- **{field}:** {head[field]}" for field in ("Sent", "Costs", "Helps")]
    return [*lines, ""]


def page() -> str:
    """The whole page.

    Raises
    ------
    ValueError, KeyError
        If a method's YAML file lacks a field.
    """
    families: dict[str, list[str]] = defaultdict(list)
    shortcuts = []
    for name, description in choices("strategy").items():
        if "_target_" not in OmegaConf.load(CONFIG_DIR / "strategy" / f"{name}.yaml"):
            shortcuts.append(f"`{name}`: {description}.")
            continue
        families[head_of(name)["Family"]] += entry(name, description)
    lines = [INTRODUCTION]
    for family, title in FAMILIES.items():
        lines += [f"## {title}", "", *families.pop(family)]
    if families:
        raise ValueError(f"no such family: {', '.join(families)}; one of {', '.join(FAMILIES)}")
    lines += ["## Around any method, with `personalization=`", ""]
    for name, description in choices("personalization").items():
        if name != "none":
            lines += entry(name, description, "personalization")
    lines += ["## Shortcuts", "", *(f"- {line}" for line in shortcuts)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description="Write docs/methods.md from what the methods say.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    arguments = parser.parse_args()
    made = page()
    if not arguments.check:
        PAGE.write_text(made)
        return 0
    if PAGE.is_file() and PAGE.read_text() == made:
        return 0
    print("docs/methods.md is out of date; run python docs/build_methods.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
