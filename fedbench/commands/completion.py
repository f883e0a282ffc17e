"""``fedbench completion``: what a shell offers after TAB."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbench.errors import UserError

# A shell asks at every TAB, so the folders are read as they are: composing with Hydra takes half a second.
_CONFIG_DIR = Path(__file__).parents[1] / "config"

_BASH = """\
# Completion of fedbench in bash: add  source <(fedbench completion bash)  to ~/.bashrc
_fedbench() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=($("${COMP_WORDS[0]}" completion --words="$line" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    # Bash ends a word at "=", and puts the reply in place of what follows.
    if [[ ${line##* } == *=* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#*=}")
    fi
    return 0
}
complete -o default -F _fedbench fedbench
"""

_ZSH = """\
#compdef fedbench
# Completion of fedbench in zsh: add  source <(fedbench completion zsh)  to ~/.zshrc, after compinit
_fedbench() {
    local -a replies
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    replies=(${(f)"$("${words[1]}" completion --words="$line" 2>/dev/null)"})
    if (( ! $#replies )); then
        compset -P '*='
        _files
    elif [[ ${replies[1]} == *= ]]; then
        compadd -S '' -- $replies
    else
        compadd -- $replies
    fi
}
if [[ $funcstack[1] == _fedbench ]]; then _fedbench; else compdef _fedbench fedbench; fi
"""

_FISH = """\
# Completion of fedbench in fish: fedbench completion fish > ~/.config/fish/completions/fedbench.fish
function __fedbench_complete
    set -l before (commandline -opc)
    set -l word (commandline -ct)
    set -l replies ($before[1] completion --words="$before $word" 2>/dev/null)
    if test (count $replies) -gt 0
        printf '%s\\n' $replies
    else
        # What stands after "key=" may be a file.
        set -l key (string match -r '^.*=' -- $word)
        printf "$key%s\\n" (__fish_complete_path (string replace -- "$key" '' $word))
    end
end
complete -c fedbench -f -a '(__fedbench_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def add(commands: Any) -> None:
    """Add the command to a parser's commands."""
    completion = commands.add_parser(
        "completion",
        help="a script that completes commands, options and choices in a shell",
        description="Print a script that completes commands, options, keys and choices in a shell.\n\n"
        "example:\n  source <(fedbench completion bash)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", nargs="?", choices=list(_SCRIPTS), help="the shell to complete in")
    # What the scripts ask: the command line up to the cursor.
    completion.add_argument("--words", help=argparse.SUPPRESS)
    # Commands that are added later are in ``choices`` by the time that it is asked.
    completion.set_defaults(function=functools.partial(_completion, commands.choices))


def _completion(parsers: Mapping[str, argparse.ArgumentParser], arguments: argparse.Namespace) -> int:
    if arguments.words is not None:
        print("".join(f"{word}\n" for word in complete(arguments.words, parsers)), end="")
        return 0
    if arguments.shell is None:
        raise UserError(f"completion: name the shell to complete in, one of: {', '.join(_SCRIPTS)}")
    print(_SCRIPTS[arguments.shell], end="")
    return 0


def complete(line: str, parsers: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """Words that the last word of a command line may become.

    Parameters
    ----------
    line : str
        The command line up to the cursor, the program's name included.
    parsers : mapping of str to ArgumentParser
        The commands.

    Returns
    -------
    list of str
        Whole words, such as ``strategy=fedavg,scaffold``; a key ends with ``=``. None where a file is asked
        for, or anything may stand.
    """
    words = line.split()[1:]
    if not words or line[-1].isspace():
        words.append("")
    *before, word = words
    if not before:
        return _starting(word, parsers)
    if before[0] not in parsers:
        return []
    # argparse tells what it was given in no other way.
    actions = [a for a in parsers[before[0]]._actions if a.help != argparse.SUPPRESS]
    for action in actions:
        if before[-1] in action.option_strings and action.nargs != 0:  # its value comes next
            return _starting(word, action.choices or ())
    if word.startswith("-"):
        return _starting(word, (o for action in actions for o in action.option_strings))
    positional = {a.dest: a.choices or () for a in actions if not a.option_strings}
    if "overrides" in positional:
        return _overrides(word, before)
    if "group" in positional:
        return _starting(word, _groups())
    return _starting(word, (choice for choices in positional.values() for choice in choices))


def _starting(word: str, choices: Iterable[Any]) -> list[str]:
    return [str(choice) for choice in choices if str(choice).startswith(word)]


def _groups() -> list[str]:
    return sorted({path.parent.name for path in _CONFIG_DIR.glob("*/*.yaml")})


def _overrides(word: str, before: Sequence[str]) -> list[str]:
    """Words that an override such as ``strategy=fed`` may become."""
    own = [Path(b).expanduser() for a, b in itertools.pairwise(before) if a == "--config-dir"]
    roots = (_CONFIG_DIR, *own)
    key, equals, value = word.partition("=")
    values: Iterable[str] = ()
    if key in (groups := _groups()):
        values = (path.stem for root in roots for path in sorted((root / key).glob("[!_]*.yaml")))
    elif "." in key:
        options = _options(key.partition(".")[0], before, roots)
        values = ("true", "false") if isinstance(options.get(key), bool) else ()
    else:
        from dataclasses import fields

        from fedbench.config.schema import RunConfig

        known = {field.name: field.type for field in fields(RunConfig) if field.name != "sweep"}
        options = dict.fromkeys([*groups, *sorted(known.keys() - groups)])
        values = ("true", "false") if known.get(key) == "bool" else ()
    if not equals:
        return _starting(word, (f"{name}=" for name in (groups if key in groups else options)))
    *given, last = value.split(",")
    ahead = ",".join([*given, ""])
    return [f"{key}={ahead}{name}" for name in _starting(last, values) if name not in given]


def _options(group: str, before: Sequence[str], roots: Sequence[Path]) -> dict[str, Any]:
    """Dotted keys of what the command line chooses in a group, or else of what is the default."""
    chosen = [b.partition("=")[2].split(",") for b in before if b.startswith(f"{group}=")]
    defaults = _read(_CONFIG_DIR / "config.yaml").get("defaults", [])
    default = [entry[group] for entry in defaults if isinstance(entry, dict) and group in entry]
    options: dict[str, Any] = {}
    for name in chosen[-1] if chosen else default:
        options |= _flat(_inherited(group, str(name), roots), f"{group}.")
    return options


def _inherited(group: str, name: str, roots: Sequence[Path]) -> dict[str, Any]:
    node: dict[str, Any] = {}
    for root in roots:
        node |= _read(root / group / f"{name}.yaml")
    parents = [
        each for each in node.pop("defaults", None) or [] if isinstance(each, str) and each != "_self_"
    ]
    inherited: dict[str, Any] = {}
    for parent in parents:
        inherited |= _inherited(group, parent, roots)
    return inherited | node


def _flat(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif key != "_target_":
            flat[f"{prefix}{key}"] = value
    return flat


def _read(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; an empty one where there is none: a completion has nobody to complain to."""
    import yaml  # type: ignore[import-untyped]

    try:
        node = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return {}
    return node if isinstance(node, dict) else {}
