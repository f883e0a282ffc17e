"""GGEUR on features of a GC ViT that an earlier run trained: from images to a comparison."""

import numpy as np
import pytest
from PIL import Image

from fedbench.config.compose import plan
from fedbench.run import run

CLASSES, DIM = 3, 8 * 16
"""DIM: channels of the last of micro's stages."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two domains, bright and dark, of three classes that differ in their colour."""
    folder = tmp_path_factory.mktemp("images") / "colours"
    rng = np.random.default_rng(0)
    for domain, light in (("bright", 200), ("dark", 120)):
        for colour in range(CLASSES):
            (folder / domain / f"class_{colour}").mkdir(parents=True)
            for number in range(20):
                pixels = rng.integers(0, 40, (32, 32, 3))
                pixels[..., colour] += light
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / domain / f"class_{colour}" / f"{number}.png")
    return folder


def test_an_alignment_of_features_that_an_earlier_run_trained(images, tmp_path):
    data = ["data=image_folder", f"data.path={images}", "data.size=32", "engine=serial"]
    small = ["client=gcvit", "scenario=central", "client.steps=2", "client.batch_size=8", "rounds=1"]
    run(plan([*data, *small])[0], tmp_path / "trained")
    weights = tmp_path / "trained/checkpoint/round-000001.safetensors"

    frozen = ["features=gcvit", f"features.weights={weights}", "features.size=32", "client=linear"]
    split = ["scenario=label_skew", "scenario.clients=4", "scenario.alpha=0.3", "rounds=2", "strategy=fedavg"]
    plain, aligned = (
        run(plan([*data, *frozen, *split, f"align={align}"])[0], tmp_path / align)
        for align in ("none", "ggeur")
    )
    for summary in (plain, aligned):
        assert summary["status"] == "completed"
        assert summary["choices"]["features"] == "gcvit"
    phases = {"query.ggeur_statistics", "query.ggeur_deliver"}
    assert set(aligned["bytes"]) - set(plain["bytes"]) == phases
    # A class's moments are a covariance at least, and every class is held by somebody.
    assert aligned["bytes"]["query.ggeur_statistics"]["up"] > CLASSES * DIM * (DIM + 1) / 2 * 4
    assert aligned["bytes"]["query.ggeur_deliver"]["down"] > 0
    assert aligned["final"]["avg"] > 0.8  # chance is a third
