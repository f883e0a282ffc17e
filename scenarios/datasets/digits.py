"""Handwritten digits that come with scikit-learn, rendered in four ways."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import distribution

import numpy as np
import numpy.typing as npt

from scenarios.datasets.files import resize
from scenarios.datasets.options import check_whole
from scenarios.federation import Dataset, Meta, Rows

Grey = npt.NDArray[np.float64]

DOMAINS = ("scanned", "inverted", "blurred", "textured")
TILT = 30.0  # degrees, and how much single images differ from it
TILT_SPREAD = 8.0
CONTRAST = 0.6  # brightest spot of a textured background; ink on black is 1
_FILE = "sklearn/datasets/data/digits.csv.gz"


@dataclass(frozen=True)
class Digits:
    """1,797 real handwritten digits in four domains that are renderings: nothing has to be fetched.

    The images are real (8 x 8 grey, the test part of UCI Optdigits, shipped with scikit-learn); the domains
    are not four sources but four ways of rendering them: ``scanned`` (as they are), ``inverted`` (dark on
    light and rotated by about 30 degrees), ``blurred`` (thick and out of focus), ``textured`` (on a cloudy
    background that shows through). Every image is in exactly one domain, and every class is spread evenly
    over the domains, so no digit is seen twice.

    Parameters
    ----------
    size : int
        Height and width, pixels.
    seed : int
        Of the division into domains, the angles and the textures.
    """

    size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("size", self.size, 8)
        check_whole("seed", self.seed, 0)

    def load(self) -> Dataset:
        """Render the digits.

        Returns
        -------
        Dataset
            ``x`` uint8, shape (1797, 1, size, size); no official test rows.
        """
        grey, y = _optdigits()
        x = resize(np.round(grey * (255 / 16)).astype(np.uint8)[:, None], self.size)[:, 0] / 255
        divide, angles, clouds = map(np.random.default_rng, np.random.SeedSequence(self.seed).spawn(3))
        domain = _deal(y, divide)
        inverted, blurred, textured = (domain == index for index in (1, 2, 3))
        x[inverted] = _invert(x[inverted], angles)
        x[blurred] = _blur(x[blurred])
        x[textured] = _texture(x[textured], clouds)
        return Dataset(
            name="digits",
            arrays={"x": np.round(x * 255).astype(np.uint8)[:, None], "y": y},
            domain=domain,
            domains=DOMAINS,
            meta=Meta("classification", (1, self.size, self.size), tuple("0123456789")),
        )


def _optdigits() -> tuple[Grey, Rows]:
    """Grey values 0 to 16 and labels, from scikit-learn's file: its own loader takes a second to import."""
    table = np.loadtxt(str(distribution("scikit-learn").locate_file(_FILE)), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def _deal(y: Rows, rng: np.random.Generator) -> Rows:
    """Domain of every row, the rows of each class dealt round in random order."""
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    domain = np.empty(len(y), dtype=np.int64)
    domain[order] = np.arange(len(y)) % len(DOMAINS)
    return domain


def _invert(x: Grey, rng: np.random.Generator) -> Grey:
    from scipy.ndimage import rotate

    angles = rng.normal(TILT, TILT_SPREAD, len(x))
    turned = [rotate(image, angle, reshape=False, order=1) for image, angle in zip(x, angles, strict=True)]
    return 1 - np.stack(turned)


def _blur(x: Grey) -> Grey:
    from scipy.ndimage import gaussian_filter, grey_dilation

    size = x.shape[-1]
    width = 1 + 2 * max(1, round(size / 16))
    return gaussian_filter(grey_dilation(x, size=(1, width, width)), (0, size / 10, size / 10))


def _texture(x: Grey, rng: np.random.Generator) -> Grey:
    from scipy.ndimage import gaussian_filter

    size = x.shape[-1]
    clouds = gaussian_filter(rng.standard_normal(x.shape), (0, size / 16, size / 16), mode="wrap")
    low, high = clouds.min(axis=(1, 2), keepdims=True), clouds.max(axis=(1, 2), keepdims=True)
    clouds = CONTRAST * (clouds - low) / (high - low)
    # Ink shows as the negative of what lies under it.
    return clouds + (1 - 2 * clouds) * x
