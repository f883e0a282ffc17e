"""Few-shot learning of unseen Omniglot characters: five methods with one body and one budget of episodes.

Every method trains on the same episodes of background characters, in the same order, from the same initial
body, and is judged on the same episodes of evaluation characters (of other alphabets), all with the turns by
90 degrees as further classes. MAML, first-order MAML and Reptile learn a linear layer on the body too, which
the others do without. Each method, number of shots and seed runs in a process of its own; memory is the most
that the process took (the proportional set size of Linux, seen twice a second), most of it libraries and
images.

    python benchmarks/few_shot.py            # under 20 minutes on one core
    python benchmarks/few_shot.py --quick    # one seed, a tenth of the episodes; nothing written

Writes ``benchmarks/results/few_shot.csv`` and ``.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

import torch
from harness import measure_apart, show
from machine import describe, load, write_table
from population import MemoryWatch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scenarios.datasets.omniglot import Omniglot
from scenarios.episodes import Episode, over_classes
from strategies.few_shot import (
    GradientSteps,
    Trial,
    episode_logits,
    evaluate,
    maml_step,
    niw_adapt,
    niw_predict,
    niw_step,
    protonet_step,
    prototype_logits,
    reptile_step,
)
from strategies.functional import Batch, Params, Stateless
from strategies.niw.estimators import Descent
from strategies.niw.posterior import Prior
from strategies.niw.server import gradient_state
from strategies.optim import SGD, Adam

METHODS = ("ProtoNet", "MAML", "FOMAML", "Reptile", "NIW-Meta")
SEEDS = (0, 1, 2)
WAYS, SHOTS = 5, (1, 5)
EPISODES, TESTS, AT_ONCE = 500, 200, 2
"""Training episodes, test episodes, and episodes of an outer step."""
TRAIN_QUERIES, TEST_QUERIES = 5, 15
"""Of each class."""
CHANNELS = 32
# Chosen on background characters that were held out for it, in a few tries of one seed each.
HEAD_LR, LAYER_LR = 1e-3, 2e-3
"""Of Adam on the outer level, for ProtoNet and NIW-Meta, and for MAML and FOMAML."""
INNER = GradientSteps(steps=5, lr=0.1)
REPTILE, REPTILE_TEST = Descent(steps=5, lr=0.1, optimizer=SGD()), Descent(steps=10, lr=0.1, optimizer=SGD())
PRIOR_PRECISION, PRIOR_N0 = 1e6, 1.0
"""``gam0_init`` and ``n0_init`` of the official code; ``n0`` is not learned here."""

Predict = Callable[[Trial], Tensor]
Fitted = tuple[Predict, dict[str, float]]
"""What predicts, and what else is to be told."""


class Body(nn.Sequential):
    """Four blocks of convolution, GroupNorm and ReLU: 28 x 28 pixels to 2 x 2 positions of 32 channels."""

    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        for given in (1, CHANNELS, CHANNELS, CHANNELS):
            blocks += [
                nn.Conv2d(given, CHANNELS, 3, stride=2, padding=1),
                nn.GroupNorm(4, CHANNELS),
                nn.ReLU(),
            ]
        super().__init__(*blocks, nn.Flatten())


class Classifier(nn.Module):
    """The body and a linear layer."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(4 * CHANNELS, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.body(x))
        return logits


# --- one method, in a process of its own ----------------------------------------------------------------


class Source:
    """Trials of one part of Omniglot, each made of an episode when it is asked for."""

    def __init__(self, part: str, shots: int, queries: int, seed: int, episodes: int) -> None:
        data = Omniglot(root=os.environ.get("FEDBENCH_DATA")).characters(part, rotations=True)
        self._x = torch.from_numpy(data.arrays["x"])
        self._episodes = over_classes(
            data.arrays["y"],
            ways=WAYS,
            shots=shots,
            queries=queries,
            seed=seed,
            purpose=part,
            episodes=episodes,
        )

    def __iter__(self) -> Iterator[Trial]:
        return map(self._trial, self._episodes)

    def __len__(self) -> int:
        return len(self._episodes)

    def batches(self) -> Iterator[list[Trial]]:
        """Trials of one outer step after the other."""
        for start in range(0, len(self._episodes), AT_ONCE):
            yield [self._trial(each) for each in self._episodes[start : start + AT_ONCE]]

    def _trial(self, episode: Episode) -> Trial:
        def batch(rows: Any) -> Batch:
            x = self._x[torch.from_numpy(rows.ravel())].float() / 255
            return {"x": x, "y": torch.arange(WAYS).repeat_interleave(rows.shape[1])}

        return Trial(batch(episode.support), batch(episode.query))


def child(method: str, shots: int, seed: int, episodes: int, tests: int) -> dict[str, float]:
    """Scores on test episodes, and the seconds of training and of judging."""
    torch.manual_seed(seed)
    body = Body()
    train = Source("background", shots, TRAIN_QUERIES, seed, episodes)
    test = Source("evaluation", shots, TEST_QUERIES, seed, tests)
    fit = {
        "ProtoNet": lambda: fit_protonet(body, train),
        "MAML": lambda: fit_maml(body, train, first_order=False),
        "FOMAML": lambda: fit_maml(body, train, first_order=True),
        "Reptile": lambda: fit_reptile(body, train),
        "NIW-Meta": lambda: fit_niw(body, train, torch.Generator().manual_seed(seed)),
    }[method]
    begun = time.perf_counter()
    predict, notes = fit()
    trained = time.perf_counter()
    scores = evaluate(predict, test)
    return asdict(scores) | notes | {"train": trained - begun, "test": time.perf_counter() - trained}


def fit_protonet(body: Body, train: Source) -> Fitted:
    model = Stateless(body)
    params = model.initial()
    state = Adam().init(params)
    for trials in train.batches():
        params, state, _ = protonet_step(model, params, trials, state, WAYS, lr=HEAD_LR)

    def predict(trial: Trial) -> Tensor:
        with torch.no_grad():
            return episode_logits(model, prototype_logits, WAYS, params, trial).log_softmax(1)

    return predict, {}


def classifier(body: Body) -> tuple[Stateless, Params, Callable[[Params, Batch], Tensor]]:
    """Model with a linear layer, its parameters, and the mean cross-entropy."""
    model = Stateless(Classifier(body))
    return model, model.initial(), lambda p, batch: cross_entropy(model(p, batch), batch["y"])


def fit_maml(body: Body, train: Source, *, first_order: bool) -> Fitted:
    model, params, loss = classifier(body)
    state = Adam().init(params)
    for trials in train.batches():
        params, state, _ = maml_step(loss, params, trials, state, INNER, first_order=first_order, lr=LAYER_LR)

    def predict(trial: Trial) -> Tensor:
        return model(INNER(loss, params, trial.support), trial.query).log_softmax(1)

    return predict, {}


def fit_reptile(body: Body, train: Source) -> Fitted:
    model, params, loss = classifier(body)
    for step, trials in enumerate(train.batches()):
        rate = 1 - step * AT_ONCE / len(train)
        params = reptile_step(loss, params, [trial.all for trial in trials], REPTILE, rate)

    def predict(trial: Trial) -> Tensor:
        adapted = REPTILE_TEST.minimise(lambda p: loss(p, trial.support), params)
        return model(adapted, trial.query).log_softmax(1)

    return predict, {}


def fit_niw(body: Body, train: Source, generator: torch.Generator) -> Fitted:
    model = Stateless(body)
    m0 = model.initial()
    start = {k: torch.full_like(v, PRIOR_PRECISION).log() for k, v in m0.items()}
    prior = Prior(m0, start, PRIOR_N0, PRIOR_N0)
    state = gradient_state(prior, Adam())
    clipped = []
    for trials in train.batches():
        prior, state, told = niw_step(model, prior, trials, state, WAYS, generator, lr=HEAD_LR)
        clipped.append(told["clip_fraction"])

    def predict(trial: Trial) -> Tensor:
        q = niw_adapt(model, prior, trial.support, WAYS, generator)
        with torch.no_grad():
            return niw_predict(model, q, trial, WAYS, generator)

    return predict, {"clip_fraction": mean(clipped)}


# --- the table ------------------------------------------------------------------------------------------


def spread(values: list[float], digits: int) -> str:
    """Mean and, of several, standard deviation."""
    shown = f"{mean(values):.{digits}f}"
    return f"{shown} ± {stdev(values):.{digits}f}" if len(values) > 1 else shown


def row(shots: int, method: str, found: list[dict[str, float]], peaks: list[int]) -> dict[str, object]:
    """One line of the table, over seeds."""

    def values(key: str) -> list[float]:
        return [each[key] for each in found]

    return {
        "shots": shots,
        "method": method,
        "accuracy": spread(values("accuracy"), 3),
        "95 % over episodes": f"± {mean(values('interval')):.3f}",
        "NLL": spread(values("nll"), 3),
        "ECE": spread(values("ece"), 3),
        "training s": f"{mean(values('train')):.1f}",
        "test episode ms": f"{mean(values('episode_ms')):.1f}",
        "peak memory MB": f"{mean(peaks) / 1e6:.0f}",
    }


def main() -> None:
    """Measure everything, print it and write it down."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the episodes; no files")
    options = parser.parse_args()
    before, part = load(), 10 if options.quick else 1
    seeds = SEEDS[:1] if options.quick else SEEDS
    rows, clips = [], []
    for shots in SHOTS:
        for method in METHODS:
            found, peaks = [], []
            for seed in seeds:
                with MemoryWatch() as memory:
                    got = measure_apart(__file__, method, shots, seed, EPISODES // part, TESTS // part)
                found.append(got | {"episode_ms": 1000 * got["test"] / (TESTS // part)})
                peaks.append(memory.peak)
                clips += [got["clip_fraction"]] if "clip_fraction" in got else []
            rows.append(row(shots, method, found, peaks))
            print(f"{method}, {shots} shots: {rows[-1]['accuracy']}", file=sys.stderr)
    show("Few-shot: unseen Omniglot characters", rows, "shots")
    notes = [
        f"{describe()}. Load average before: {before:.2f}.",
        f"{WAYS}-way episodes of Omniglot 28 x 28 with turned classes; {EPISODES // part} training episodes "
        f"with {TRAIN_QUERIES} queries a class, {AT_ONCE} an outer step; {TESTS // part} test episodes with "
        f"{TEST_QUERIES}; seeds {', '.join(map(str, seeds))}, mean ± standard deviation over them. Body of "
        f"four convolutions of {CHANNELS} channels with GroupNorm. Adam on the outer level, {HEAD_LR:g} for "
        f"ProtoNet and NIW-Meta, {LAYER_LR:g} for MAML and FOMAML, whose {INNER.steps} inner steps have rate "
        f"{INNER.lr:g}. Reptile: {REPTILE.steps} inner steps of rate {REPTILE.lr:g} on support and queries "
        f"together, {REPTILE_TEST.steps} at the test; so few episodes are far from what it needs.",
        "NIW-Meta with the flags of the official code (3 Langevin steps, alpha 1e-6, bound 1e3, prior "
        f"precision 1e6, 2 samples at the test), n0 fixed: a share of {mean(clips):.3f} of the curvatures "
        "lies at the bound, so that it is ProtoNet with a little noise on the weights. Expected is an "
        "accuracy within 0.02 of ProtoNet's, not a gain.",
    ]
    print("\n".join(notes))
    if not options.quick:
        print(f"written to {write_table('few_shot', 'Few-shot learning', rows, notes)} and .csv")


if __name__ == "__main__":
    main()
