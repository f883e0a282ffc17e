"""Overrides in, composed configs out: Hydra's composition with fedbench's words for mistakes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedbench.errors import UserError, nearest

from .schema import RunConfig

CONFIG_DIR = Path(__file__).parent
GROUPS = ("scenario", "data", "features", "client", "align", "strategy", "engine", "experiment")

_NOT_COMPARED = ("seed", "run_dir", "cache_dir", "engine", "sweep", "choices", "experiment")


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
            first = path.read_text().partition("\n")[0]
            found[path.stem] = first.lstrip("# ") if first.startswith("#") else ""
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
    parsed = _parse(overrides, multirun, config_dir)
    typed = [(o.key_or_group, _variants(o)) for o in parsed]
    combinations = [list(c) for c in itertools.product(*(variants for _, variants in typed))]
    configs = []
    for combination in combinations:
        base = _compose(combination, config_dir)
        named = {key for key, _ in typed}
        axes = {k: v for k, v in (base.sweep or {}).items() if not _is_set(str(k), named)}
        for axis, values in axes.items():
            if not isinstance(values, (list, tuple)) and not OmegaConf.is_list(values):
                raise UserError(f"sweep.{axis}: must be a list of values, got {values!r}")
        for point in itertools.product(*axes.values()):
            extra = [f"{k}={v}" for k, v in zip(axes, point, strict=True)]
            # Group choices come first, so that what they bring does not hide what the user wrote.
            configs.append(_compose([*extra, *combination], config_dir) if extra else base)
    return configs


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


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if prefix or key not in _NOT_COMPARED:
            flat |= _flat(value, f"{prefix}{key}.")
    return flat


def _is_set(axis: str, named: set[str]) -> bool:
    return axis in named or axis.partition(".")[0] in named


def _variants(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()]


def _parse(overrides: Sequence[str], multirun: bool, config_dir: str | Path | None) -> list[Override]:
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise UserError(f"'{text}' is no override; write key=value, e.g. strategy=ggeur or rounds=10")
    try:
        parsed = OverridesParser.create().parse_overrides(overrides=list(overrides))
    except HydraException as error:
        raise UserError(str(error).strip().splitlines()[0]) from error
    for override in parsed:
        if override.is_sweep_override() and not multirun:
            raise UserError(
                f"'{override.input_line}' names several values; add -m to run them all: fedbench run -m ..."
            )
        key = override.key_or_group
        if key in GROUPS and not override.is_delete():
            for value in _variants(override):
                name = value.partition("=")[2].strip("'\"")
                known = choices(key, config_dir)
                if name not in known and not (key == "experiment" and name == "null"):
                    raise UserError(f"{key}={name}: no such {key}{nearest(name, known)}")
    return parsed


def _compose(overrides: list[str], config_dir: str | Path | None) -> DictConfig:
    try:
        config = _compose_unresolved(overrides, config_dir)
        written = _flat(OmegaConf.to_container(config, resolve=False))
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, overrides, config_dir)) from error
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]}: needs a value; add {missing[0]}=... to the command")
    config["settings"] = written
    return config


def _compose_unresolved(overrides: list[str], config_dir: str | Path | None) -> DictConfig:
    ConfigStore.instance().store("schema", RunConfig)
    searched = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3", job_name="fedbench"):
        config = compose("config", overrides=[*overrides, *searched], return_hydra_config=True)
    chosen = {g: config.hydra.runtime.choices.get(g) for g in GROUPS}
    OmegaConf.set_struct(config, False)
    OmegaConf.set_readonly(config, False)
    del config["hydra"]
    config["choices"] = {k: v for k, v in chosen.items() if v}
    return config


def _explain(error: Exception, overrides: list[str], config_dir: str | Path | None) -> str:
    """One line for what Hydra or OmegaConf raised, with the nearest valid name."""
    cause: BaseException | None = error
    while cause is not None:
        key = getattr(cause, "full_key", None)
        if key and "could not be converted" in str(cause):
            return f"{key}: {str(cause).splitlines()[0]}"
        cause = cause.__cause__
    unknown = re.match(r"Could not override '([^'@]+)'", str(error))
    if unknown:
        # Group choices decide which keys exist; all other overrides may be wrong themselves.
        chosen = [o for o in overrides if o.partition("=")[0] in GROUPS]
        whole = _compose_unresolved(chosen, config_dir)
        parent, _, leaf = unknown.group(1).rpartition(".")
        siblings: Any = OmegaConf.select(whole, parent) if parent else whole
        names = (
            [str(k) for k in siblings if not str(k).startswith("_")] if OmegaConf.is_dict(siblings) else []
        )
        where = f" in '{parent}'" if parent else ""
        return f"{unknown.group(1)}: no such key{where}{nearest(leaf, names)}"
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
