"""New embeddings along the global shape of each class, and how many of them a client makes.

Steps C and D of GGEUR (arXiv 2503.06457, Eq. 5, Algorithms 1 and 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from strategies.ggeur.geometry import Geometry

Array = npt.NDArray[Any]
Scale = Literal["sqrt", "linear", "sqrt_code_md", "iso", "gauss", "none"]
Allocation = Literal["balanced", "pool"]
PolicyName = Literal["none", "single", "multi", "code_digits", "code_lds"]
RngFor = Callable[[int, str], np.random.Generator]

CODE_JITTER = 1e-6


def _check(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: unknown, got {value!r}; one of {', '.join(map(str, choices))}")


# --- step C: the noise ---------------------------------------------------------------------------


def noise(
    geometry: Geometry,
    m: int,
    rng: np.random.Generator,
    scale: Scale = "sqrt",
    jitter: float = 0.0,
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """Draw ``m`` perturbations shaped by the class (Eq. 5).

    Parameters
    ----------
    geometry : Geometry
        Shape of the class.
    m : int
        Number of rows.
    rng : numpy.random.Generator
        ``sqrt`` and ``linear`` draw the same numbers from it.
    scale : str
        ``"sqrt"``: ``sum_m eps_m sqrt(lambda_m) xi_m``, covariance ``Sigma`` (D1: the default, as the
        published code; noise then scales with the embeddings). ``"linear"``: ``sum_m eps_m lambda_m xi_m``,
        covariance ``Sigma^2``, as the paper's figure and Eq. 5. ``"sqrt_code_md"``: sqrt with the code's
        jitter, meant for a geometry made with ``spectrum_boost="code"`` (D2). ``"iso"``: isotropic with
        the trace of ``Sigma``. ``"gauss"``: sqrt (`augment` puts it around the class mean). ``"none"``:
        zero.
    jitter : float
        Variance of isotropic noise that is added in all ``d`` directions, except for ``"none"``.
    dtype : dtype
        float32 or float64, of the draws and of the result.

    Returns
    -------
    ndarray, shape (m, d)

    Raises
    ------
    ValueError
        If ``scale`` is unknown or ``jitter`` or ``m`` is negative.
    """
    _check("scale", scale, get_args(Scale))
    if m < 0 or not jitter >= 0:
        raise ValueError(f"m, jitter: must not be negative, got {m} and {jitter}")
    kind: Any = np.dtype(dtype)
    d = geometry.dim

    def normal(width: int) -> Array:
        return rng.standard_normal((m, width), dtype=kind)

    if scale == "none":
        return np.zeros((m, d), kind)
    if scale == "iso":
        delta = normal(d) * kind.type(np.sqrt(geometry.trace / d))
    else:
        lam, U = geometry.values, geometry.vectors
        stretch = lam if scale == "linear" else np.sqrt(lam)
        delta = (normal(geometry.rank) * stretch.astype(kind)) @ U.astype(kind).T
    if scale == "sqrt_code_md":
        jitter = max(jitter, CODE_JITTER)
    if jitter > 0:
        delta += normal(d) * kind.type(np.sqrt(jitter))
    return delta


def seed_multiplicities(
    n: int, m: int, rng: np.random.Generator, how: Allocation = "balanced"
) -> npt.NDArray[np.int64]:
    """Share ``m`` new vectors among ``n`` originals.

    Parameters
    ----------
    n, m : int
        Originals, new vectors.
    rng : numpy.random.Generator
        Breaks ties, or picks from the pool.
    how : {"balanced", "pool"}
        ``"balanced"``: the floor or the ceiling of m/n each, at random (spec 2.4: same marginals as the
        code, lower variance). ``"pool"``, as the single-domain code: distinct originals where n >= m, else
        each original spawns R vectors and m of the n R are kept, R = T for n < 10 and T/10 from there on,
        T = n + m. Only the number kept of each original matters, which is multivariate hypergeometric.

    Returns
    -------
    ndarray of int64, shape (n,)
        How many vectors each original seeds; sums to ``m``.

    Raises
    ------
    ValueError
        If ``how`` is unknown, a number is negative, or there is nothing to seed from.
    """
    _check("how", how, get_args(Allocation))
    if n < 0 or m < 0 or (n == 0 and m > 0):
        raise ValueError(f"n, m: need n >= 1 originals for m >= 0 new vectors, got {n} and {m}")
    if n == 0:
        return np.zeros(0, np.int64)
    if how == "pool" and n < m:
        spawned = n + m if n < 10 else -(-(n + m) // 10)
        return rng.multivariate_hypergeometric(np.full(n, spawned), m)
    counts = np.full(n, m // n, np.int64)
    counts[rng.choice(n, m % n, replace=False)] += 1
    return counts


# --- step D: how many ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """How many vectors a client makes of each class. `Policy.of` gives the named ones.

    Parameters
    ----------
    name : str
        Name in settings and reports.
    own : int or None
        Originals are filled up to this number with vectors around originals; ``None`` stands for the
        class's global count ``N_i``. With ``total``: size of the pool of vectors around originals.
    foreign : int
        Vectors around the prototype of each other domain. With ``total``: size of the pool of each.
    total : int, optional
        The rule of the published code: fill up to ``total`` by drawing from all pools together.
    drops : bool
        With ``total``: whether originals beyond it are discarded at random. The only way to lose any.
    """

    name: str
    own: int | None
    foreign: int
    total: int | None = None
    drops: bool = False

    def __post_init__(self) -> None:
        for field, value in (("own", self.own), ("foreign", self.foreign), ("total", self.total)):
            if value is not None and value < 0:
                raise ValueError(f"{field}: must not be negative, got {value} (policy '{self.name}')")

    @classmethod
    def of(cls, name: PolicyName, own: int | None = None, foreign: int | None = None) -> Policy:
        """Return a policy by name.

        Parameters
        ----------
        name : str
            ``"none"``: nothing. ``"single"``: Algorithm 1, fill up to ``own`` = T, by default the global
            class count. ``"multi"``: Algorithm 2, ``own`` = T1 and ``foreign`` = M, by default 500 each
            (D8). ``"code_digits"``: 2000 in all, from pools of 500. ``"code_lds"``: 50 in all, from pools
            of 50, surplus originals discarded.
        own, foreign : int, optional
            Numbers in place of the defaults, where the policy has them.

        Raises
        ------
        ValueError
            If the name is unknown, a number is negative, or the policy has no such number.
        """
        _check("policy", name, get_args(PolicyName))
        if own is not None and name not in ("single", "multi"):
            raise ValueError(f"own: policy '{name}' fixes it, got {own}; one of single, multi takes it")
        if foreign is not None and name != "multi" and not (name == "single" and foreign == 0):
            raise ValueError(f"foreign: policy '{name}' fixes it, got {foreign}; one of multi takes it")
        default = _POLICIES[name]
        return cls(
            name,
            default.own if own is None else own,
            default.foreign if foreign is None else foreign,
            default.total,
            default.drops,
        )

    def draws(self, n: int, domains: int, count: int, rng: np.random.Generator) -> tuple[int, list[int]]:
        """Return the numbers of new vectors around originals, and around each foreign prototype.

        Parameters
        ----------
        n : int
            The client's originals of the class.
        domains : int
            Other domains that have a prototype of it.
        count : int
            Its global count ``N_i``.
        rng : numpy.random.Generator
            Draws from the pools, where there are any.
        """
        own = count if self.own is None else self.own
        if self.total is None:
            return (max(own - n, 0) if n > 0 else 0), [self.foreign] * domains
        # The code fails where the pools hold too little; here they are then used up.
        pools = [own if n > 0 else 0] + [self.foreign] * domains
        m = max(min(self.total - n, sum(pools)), 0)
        if n == 0:  # D13: evenly from all prototypes; the code takes the first domain's alone
            return 0, seed_multiplicities(domains, m, rng).tolist()
        drawn = rng.multivariate_hypergeometric(pools, m).tolist()
        return drawn[0], drawn[1:]


_POLICIES: dict[str, Policy] = {
    "none": Policy("none", 0, 0),
    "single": Policy("single", None, 0),
    "multi": Policy("multi", 500, 500),
    "code_digits": Policy("code_digits", 500, 500, total=2000),
    "code_lds": Policy("code_lds", 50, 50, total=50, drops=True),
}


# --- steps C and D together ----------------------------------------------------------------------


@dataclass(frozen=True)
class GeometryPack:
    """What the server sends, once, before the first round.

    Parameters
    ----------
    geometries : dict of int to Geometry
        Shape of every class. A class without one is left as it is.
    prototypes : dict of (str, int) to ndarray of shape (d,)
        Class means by domain name and class.
    means : dict of int to ndarray of shape (d,), optional
        Global class means, for ``scale="gauss"`` alone.
    """

    geometries: dict[int, Geometry]
    prototypes: dict[tuple[str, int], Array]
    means: dict[int, Array] | None = None


@dataclass(frozen=True)
class Augmented:
    """A client's embeddings after augmentation.

    Parameters
    ----------
    x : ndarray, shape (n + m, d)
        Originals, untouched and in their order, then new vectors by class: own, then foreign.
    y : ndarray, shape (n + m,)
        Labels.
    is_synthetic : ndarray of bool, shape (n + m,)
        Which rows are new.
    rms_noise_ratio : float
        RMS length of the noise over RMS length of its seeds; 0 where nothing was made or all seeds are 0.
    """

    x: Array
    y: Array
    is_synthetic: npt.NDArray[np.bool_]
    rms_noise_ratio: float


@dataclass(frozen=True)
class _Block:
    """New vectors of one class to make around ``source[rows]``; ``stage`` names their stream."""

    label: int
    stage: str
    source: Array
    rows: npt.NDArray[np.int64]


def augment(
    x: Array,
    y: Array,
    pack: GeometryPack,
    policy: Policy,
    *,
    domain: str,
    rng_for: RngFor,
    scale: Scale = "sqrt",
    jitter: float = 0.0,
    allocation: Allocation = "balanced",
) -> Augmented:
    """Enlarge one client's embeddings (step D).

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (n, d)
        The client's embeddings.
    y : ndarray of integers, shape (n,)
        Their labels.
    pack : GeometryPack
        What the server sent.
    policy : Policy
        How many vectors to make.
    domain : str
        The client's own domain; prototypes of all others are foreign.
    rng_for : callable
        Class and stage to a stream of its own, so that no result depends on the order of the work.
    scale, jitter : str, float
        See `noise`. With ``"gauss"`` (D17, a control) all new vectors lie around the global class mean,
        i.e. follow ``N(mu_i, Sigma_i)``, where the method's lie around samples and are over-dispersed.
    allocation : {"balanced", "pool"}
        See `seed_multiplicities`.

    Returns
    -------
    Augmented
        ``x`` and ``y`` themselves where there is nothing to add or drop.

    Raises
    ------
    ValueError
        If shapes or types do not fit, or an option is unknown.
    """
    _check("scale", scale, get_args(Scale))
    _check("allocation", allocation, get_args(Allocation))
    _check("x.dtype", x.dtype.name, ("float32", "float64"))
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x, y: need shapes (n, d) and (n,), got {x.shape} and {y.shape}")
    means = pack.means or {}
    if scale == "gauss" and not means.keys() >= pack.geometries.keys():
        raise ValueError("means: scale 'gauss' needs the global mean of every class, got none or too few")

    keep = np.ones(len(y), np.bool_)
    blocks: list[_Block] = []
    for label, geometry in sorted(pack.geometries.items()):
        if geometry.dim != x.shape[1]:
            raise ValueError(f"x: class {label} has a geometry of dimension {geometry.dim}, got {x.shape[1]}")
        originals = np.flatnonzero(y == label)
        others = sorted(q for q, c in pack.prototypes if c == label and q != domain)
        own, foreign = policy.draws(len(originals), len(others), geometry.count, rng_for(label, "draws"))
        times = seed_multiplicities(len(originals), own, rng_for(label, "seeds"), allocation)
        blocks.append(_Block(label, "own", x, originals.repeat(times)))
        for q, m in zip(others, foreign, strict=True):
            blocks.append(
                _Block(label, f"foreign {q}", pack.prototypes[q, label][None], np.zeros(m, np.int64))
            )
        if policy.drops and policy.total is not None and len(originals) > policy.total:
            chosen = rng_for(label, "keep").choice(originals, policy.total, replace=False)
            keep[originals] = False
            keep[chosen] = True

    made = sum(len(block.rows) for block in blocks)
    if made == 0 and keep.all():
        return Augmented(x, y, np.zeros(len(y), np.bool_), 0.0)
    kept = int(keep.sum())
    new_x, new_y = np.empty((kept + made, x.shape[1]), x.dtype), np.empty(kept + made, y.dtype)
    new_x[:kept], new_y[:kept] = x[keep], y[keep]
    at, noise_squares, seed_squares = kept, 0.0, 0.0
    for block in blocks:
        m = len(block.rows)
        gauss = scale == "gauss"
        seeds = np.repeat(means[block.label][None], m, axis=0) if gauss else block.source[block.rows]
        rng = rng_for(block.label, block.stage)
        delta = noise(pack.geometries[block.label], m, rng, scale, jitter, x.dtype)
        noise_squares += float(np.square(delta, dtype=np.float64).sum())
        seed_squares += float(np.square(seeds, dtype=np.float64).sum())
        new_x[at : at + m] = seeds.astype(x.dtype, copy=False) + delta
        new_y[at : at + m] = block.label
        at += m
    ratio = float(np.sqrt(noise_squares / seed_squares)) if seed_squares > 0 else 0.0
    return Augmented(new_x, new_y, np.arange(kept + made) >= kept, ratio)
