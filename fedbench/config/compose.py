"""Overrides in, composed configs out: Hydra's composition with fedbench's words for mistakes."""

from __future__ import annotations

import copy
import itertools
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import MarkedYAMLError  # type: ignore[import-untyped]

from fedbench.errors import UserError, nearest

from .objects import flat, words
from .schema import RunConfig

CONFIG_DIR = Path(__file__).parent
GROUPS = (
    "scenario",
    "data",
    "features",
    "client",
    "align",
    "strategy",
    "attack",
    "personalization",
    "privacy",
    "system",
    "engine",
    "tracker",
    "experiment",
)

# For presets of two sizes: ${choose:${fast},10,100}.
OmegaConf.register_new_resolver("choose", lambda flag, yes, no: yes if flag else no, replace=True)

_TYPES = typing.get_type_hints(RunConfig)
NOT_COMPARED = (
    "seed",
    "profile",
    "run_dir",
    "cache_dir",
    "engine",
    "tracker",
    "sweep",
    "choices",
    "experiment",
)
"""What tells no methods apart: on most of it no result depends, and the rest stands for other settings."""


def choices(group: str, config_dir: str | Path | None = None) -> dict[str, str]:
    """Names and one-line descriptions of a group's choices.

    Parameters
    ----------
    group : str
        One of ``GROUPS``.
    config_dir : path, optional
        A directory of the user's own groups, searched as well.
    """
    found = {}
    for root in (CONFIG_DIR, *([Path(config_dir)] if config_dir else [])):
        for path in sorted((root / group).glob("[!_]*.yaml")):
            comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
            found[path.stem] = next((c[2:] for c in comments if not c.startswith("# @")), "")
    return found


def plan(
    overrides: Sequence[str], *, multirun: bool = False, config_dir: str | Path | None = None
) -> list[DictConfig]:
    """Composed configs of all runs that the overrides ask for.

    Parameters
    ----------
    overrides : sequence of str
        Hydra overrides, e.g. ``["scenario=label_skew", "scenario.alpha=0.1"]``.
    multirun : bool
        Allow comma-separated values, as Hydra's ``-m``.
    config_dir : path, optional
        A directory of the user's own groups.

    Returns
    -------
    list of DictConfig
        One a run, in the order of the product; ``choices`` in each names what its groups chose.

    Raises
    ------
    UserError
        For a mistake in the overrides.
    """
    if config_dir is not None:
        check_config_dir(config_dir)
    parsed = _parse(overrides, multirun, config_dir)
    typed = [(o.key_or_group, _variants(o)) for o in parsed]
    combinations = [list(c) for c in itertools.product(*(variants for _, variants in typed))]
    configs: list[DictConfig] = []
    known: _Known = {}
    for combination in combinations:
        base = _compose(combination, config_dir, known)
        points = _points(dict(base.sweep or {}), combination)
        configs += [_compose(point, config_dir, known) for point in points] if points else [base]
    return configs


def check_config_dir(config_dir: str | Path) -> None:
    """Raise UserError unless a directory of the user's own groups is there and hides nothing of ours."""
    config_dir = Path(config_dir)
    if not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir}: no such directory")
    for group in GROUPS:
        for name in choices(group, config_dir).keys() & choices(group).keys():
            if (path := config_dir / group / f"{name}.yaml").exists():
                raise UserError(f"{path}: {group}={name} exists already; give the file another name")


def _points(sweep: dict[str, Any], given: list[str]) -> list[list[str]]:
    """All overrides of each run of a sweep: the axes, and what the command line gave.

    An axis is a list of values of one key, or a mapping of names to overrides that belong together
    (``dup: align=dup align.own=60``). It is left out where the command line sets it. A value of an option
    is left out of the runs in which such a mapping changes the group that has the option. Where two
    mappings set the same key, the later one does.
    """
    named = {_key(o) for o in given}
    lists: list[list[str]] = []
    bundles: list[list[list[str]]] = []
    for axis, values in sweep.items():
        if OmegaConf.is_dict(values):
            bundle = [str(v).split() for v in values.values()]
            if not any(_is_set(_key(o), named) for entry in bundle for o in entry):
                bundles.append(bundle)
        elif OmegaConf.is_list(values):
            if not _is_set(str(axis), named):
                lists.append([f"{axis}={'null' if value is None else value}" for value in values])
        else:
            raise UserError(
                f"sweep.{axis}: must be a list of values, or names with overrides; got {values!r}"
            )
    points: list[list[str]] = []
    if not bundles and not lists:
        return points
    for entries, values in itertools.product(itertools.product(*bundles), itertools.product(*lists)):
        together = {_key(o): o for entry in entries for o in entry}
        options = [*values, *(o for o in given if _key(o) in sweep)]
        fixed = [o for o in given if _key(o) not in sweep]
        options = [o for o in options if _key(o).partition(".")[0] not in together]
        point = [*together.values(), *options, *fixed]
        if point not in points:
            points.append(point)
    return points


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def settings(config: DictConfig) -> dict[str, Any]:
    """What a run's result depends on besides the seed, as dotted keys; equal for runs that differ by seed.

    Values that refer to others (``data.seed: ${seed}``) are given as written.
    """
    container: Any = OmegaConf.to_container(config.settings, resolve=False)
    return dict(container)


def as_yaml(config: DictConfig) -> str:
    """The configuration of one run as YAML."""
    return OmegaConf.to_yaml(
        OmegaConf.masked_copy(config, [str(k) for k in config if k not in ("settings", "sweep")])
    )


def _is_set(axis: str, named: set[str]) -> bool:
    return axis in named or axis.partition(".")[0] in named


def _variants(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()]


def _parse(overrides: Sequence[str], multirun: bool, config_dir: str | Path | None) -> list[Override]:
    for text in overrides:
        if "=" not in text or text.startswith("~"):
            raise UserError(f"'{text}' is no override; write key=value, e.g. strategy=ggeur or rounds=10")
    parsed = [_parse_one(text) for text in overrides]
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            raise UserError(
                f"'{override.input_line}' names several values; add -m to run them all: fedbench run -m ..."
            )
        key = override.key_or_group
        if key in GROUPS:
            for value in _variants(override):
                name = value.partition("=")[2].strip("'\"")
                known = choices(key, config_dir)
                if name not in known and not (key == "experiment" and name == "null"):
                    raise UserError(f"{key}={name}: no such {key}{nearest(name, known)}")
    return parsed


def _parse_one(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"'{text}' cannot be read ({reason}); text with signs needs quotes") from error


_Known = dict[tuple[str, ...], DictConfig]
"""Configs before they are resolved, by what composed them."""


def _compose(overrides: list[str], config_dir: str | Path | None, known: _Known) -> DictConfig:
    try:
        config = _compose_unresolved(overrides, config_dir, known)
        whole: Any = OmegaConf.to_container(config, resolve=False)
        written = flat({k: v for k, v in whole.items() if k not in NOT_COMPARED})
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides, config_dir)) from error
    except MarkedYAMLError as error:
        at = f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{at}not valid YAML ({error.problem})") from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]}: needs a value; add {missing[0]}=... to the command")
    config["settings"] = written
    return config


def _compose_unresolved(overrides: list[str], config_dir: str | Path | None, known: _Known) -> DictConfig:
    """A config of its own; one for all seeds is composed once, since Hydra takes half a second to."""
    seeds = [o for o in overrides if re.fullmatch(r"seed=\d+", o)]
    others = tuple(o for o in overrides if o not in seeds)
    if others not in known:
        known[others] = _compose_fresh([*others, *seeds[:1]], config_dir)
    config = copy.deepcopy(known[others])
    if seeds:
        config.seed = int(seeds[-1].partition("=")[2])
    return config


def _compose_fresh(overrides: list[str], config_dir: str | Path | None) -> DictConfig:
    ConfigStore.instance().store("schema", RunConfig)
    searched = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3", job_name="fedbench"):
        config = compose("config", overrides=[*overrides, *searched], return_hydra_config=True)
    chosen = {g: config.hydra.runtime.choices.get(g) for g in GROUPS}
    OmegaConf.set_struct(config, False)
    OmegaConf.set_readonly(config, False)
    del config["hydra"]
    config["choices"] = {k: v for k, v in chosen.items() if v and k != "tracker"}
    return config


def _explain(error: Exception, overrides: list[str], config_dir: str | Path | None) -> str:
    """One line for what Hydra or OmegaConf raised, with the nearest valid name."""
    cause: BaseException = error
    while cause.__cause__ is not None and not getattr(cause, "full_key", None):
        cause = cause.__cause__
    key = str(getattr(cause, "full_key", ""))
    if isinstance(cause, ValidationError) and key in _TYPES:
        given = [o.partition("=")[2] for o in overrides if _key(o) == key]
        return f"{key}{f'={given[-1]}' if given else ''}: must be {words(_TYPES[key])}"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and "Could not override" in str(error):
        # Group choices decide which keys exist; all other overrides may be wrong themselves.
        chosen = [o for o in overrides if o.partition("=")[0] in GROUPS]
        whole = _compose_fresh(chosen, config_dir)
        parent, _, leaf = key.rpartition(".")
        siblings: Any = OmegaConf.select(whole, parent) if parent else whole
        names = (
            {str(k) for k in siblings if not str(k).startswith("_")} if OmegaConf.is_dict(siblings) else set()
        )
        if not parent:
            names = names - {"choices"} | {"experiment"}
        where = f" in '{parent}'{'' if names else ', which has none'}" if parent else ""
        return f"{key}: no such key{where}{nearest(leaf, names)}"
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
