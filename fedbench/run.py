"""A run: rounds of a strategy on an engine, watched at the grid, and written down."""

from __future__ import annotations

import json
import logging
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from omegaconf import DictConfig, OmegaConf

from clients.tasks.forecasting import FORECAST, Forecasting
from strategies.arrays import numpy_of, record, tensors_of
from strategies.errors import StrategyError
from strategies.functional import Params, Stateless
from strategies.method import with_common_metrics
from strategies.seeding import generator, torch_seed
from strategies.state import load_state_dict, state_dict
from strategies.timing import BROADCAST, part, timed

from .bench import Bench, build
from .config.compose import as_yaml, settings
from .engine.grid import FIRST_NODE_ID, EngineGrid, Exchange
from .engine.profile import AGGREGATE, EVALUATE, OTHER, Profile, active, profiling
from .engine.system import LOSSES, SystemGrid
from .engine.worker import CLIENT_LOST, settle_process
from .errors import RunFailed, UserError
from .evaluation import Evaluation
from .live import LiveView
from .report.forecast_picture import Forecast, forecast_picture
from .report.profile_picture import profile_picture
from .report.profile_table import markdown, write_csv
from .report.split_picture import split_picture
from .results.run_dir import RunDirectory, Weights, load_checkpoint, read_summary, weights_digest
from .results.split import describe_split
from .results.state import from_records, to_records
from .trackers import tracker_of, tracking

log = logging.getLogger("fedbench")

Sums = dict[str, float]
_BOOKS = ("bytes", "seconds", "client_metrics", "history", "failures", "lost")
"""What a run has counted so far."""
_LAST = 5
"""Evaluated rounds that the ``last_5`` figures average."""


class Run:
    """One run of one config, from its parts to its summary.

    Parameters
    ----------
    bench : Bench
        The parts.
    directory : RunDirectory
        Where results go.
    """

    def __init__(self, bench: Bench, directory: RunDirectory) -> None:
        self.bench, self.directory = bench, directory
        self.config = bench.config
        self.task = bench.spec.task
        self.model = Stateless(bench.spec.model(), self.task.inputs, bench.spec.device)
        self.bytes: dict[str, dict[str, int]] = defaultdict(lambda: {"down": 0, "up": 0})
        self.seconds: dict[str, float] = defaultdict(float)
        self.personal = bench.personal
        self.client_metrics: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        """Sum and count of every number that clients reported."""
        self.history: list[dict[str, Any]] = []
        self.failures = 0
        self.lost = dict.fromkeys(LOSSES, 0)
        """Clients whose work a system lost, by reason."""
        self._clock: float | None = None
        self._round = self._completed = self._worked = 0
        self._restored: tuple[ArrayRecord, dict[int, RecordDict], dict[str, Any]] | None = None
        self._exchanges: list[Exchange] = []
        clients, new = len(bench.federation.clients), bench.spec.new
        self._members = np.setdiff1d(np.arange(clients), sorted(new))
        """Clients that take part: all but the new ones."""
        self._evaluation = Evaluation(bench, self.model)

    # --- the rounds ------------------------------------------------------------------------------

    def execute(self) -> dict[str, Any]:
        """Run all rounds and return the summary, which is written too.

        Raises
        ------
        RunFailed
            If more clients failed in a round than ``max_failures`` allows.
        """
        if not self.config.get("profile"):
            return self._execute()
        with profiling(self.config.rounds) as profile:
            try:
                return self._execute()
            finally:
                self._write_profile(profile)

    def _execute(self) -> dict[str, Any]:
        settle_process()
        started = time.perf_counter() - self.seconds.pop("total", 0.0)
        arrays, clients, engine = self._restored or (record(self._initial()), {}, {})
        status = "failed"
        try:
            with self.bench.make_grid(self._observe) as grid:
                grid.wait()
                grid.load_client_states(clients)
                if engine:
                    grid.load_engine_state(engine)
                self.seconds["start"] = time.perf_counter() - started
                arrays = self._prepare(grid, arrays)
                with self._view() as view:
                    while self._round < self.config.rounds and not self._stale():
                        self._round += 1
                        profile = active()
                        with profile.round(self._round) if profile else nullcontext():
                            arrays = self._one_round(grid, arrays)
                            self._completed = self._round
                            self.seconds["total"] = time.perf_counter() - started
                            with part(OTHER):
                                if self._round % max(self.config.rounds // 10, 1) == 0:
                                    self._checkpoint(arrays, grid)
                                self._show(view)
                status = "completed"
                self._forecasts(grid, arrays)
        except StrategyError as error:
            self._settle([])  # where clients failed, their own errors say why
            raise RunFailed(str(error)) from error
        finally:
            self.seconds["total"] = time.perf_counter() - started
            if self._completed % max(self.config.rounds // 10, 1):
                self._checkpoint(arrays)
            summary = self._summary(arrays, status)
            self.directory.summarise(summary)
            self.directory.close()
        return summary

    def _initial(self) -> Params:
        """The first model, without what never leaves the clients."""
        return {k: v for k, v in self.model.initial().items() if k not in self.bench.spec.local}

    def _prepare(self, grid: EngineGrid, arrays: ArrayRecord) -> ArrayRecord:
        """The strategy's phase before the rounds, if it has one."""
        prepare = getattr(self.bench.strategy, "prepare", None)
        started = time.perf_counter()
        if prepare is not None:
            with self._everyone(grid):
                arrays = prepare(grid, arrays)
        self.seconds["prepare"] = time.perf_counter() - started
        self._settle([])
        return arrays

    def _stale(self) -> bool:
        """Whether ``patience`` evaluations in a row were worse on validation rows than an earlier one."""
        patience, scores = self.config.patience, [p["val"] for p in self.history]
        if patience is None or None in scores or len(scores) <= patience:
            return False
        pick = max if self.task.higher_is_better else min
        since = len(scores) - 1 - max(i for i, score in enumerate(scores) if score == pick(scores))
        if since >= patience:
            log.info(
                "stopped after round %d: no better on validation rows for %d evaluations", self._round, since
            )
        return since >= patience

    def _one_round(self, grid: EngineGrid, arrays: ArrayRecord) -> ArrayRecord:
        strategy, config = self.bench.strategy, self.config
        with grid.cohort(self._chosen(grid)):
            started = time.perf_counter()
            with part(BROADCAST):
                self._seed_flower("train")
                messages = strategy.configure_train(self._round, arrays, ConfigRecord(), grid)
            replies = grid.send_and_receive(messages)
            self.seconds["train"] += time.perf_counter() - started
        self._worked = len(self._settle(replies))
        started = time.perf_counter()
        arrays = self._aggregated(grid, arrays, replies)
        self.seconds["aggregate"] += time.perf_counter() - started
        self._tell_time(grid)
        if self._round % config.eval_every == 0 or self._round == config.rounds:
            started = time.perf_counter()
            self._evaluate(grid, arrays)
            self.seconds["evaluate"] += time.perf_counter() - started
        return arrays

    @timed(AGGREGATE)
    def _aggregated(self, grid: EngineGrid, arrays: ArrayRecord, replies: list[Message]) -> ArrayRecord:
        """The next model."""
        strategy = self.bench.strategy
        self._seed_flower("aggregate")
        aggregated = None
        if replies and all(r.has_error() for r in replies):
            log.warning(
                "round %d: none of %d clients finished; the model stays as it is", self._round, len(replies)
            )
        else:
            aggregated = strategy.aggregate_train(self._round, replies)[0]
        finish = getattr(strategy, "finish", None)
        if finish is not None and self._round == self.config.rounds:
            with self._everyone(grid):
                aggregated = finish(grid, arrays if aggregated is None else aggregated)
            self._settle([])
        if aggregated is not None:
            # Some of Flower's server optimisers widen to float64; what is sent and counted stays as it was.
            arrays = record(self.model.to_device(tensors_of(aggregated)))
        return arrays

    @timed(EVALUATE)
    def _evaluate(self, grid: EngineGrid, arrays: ArrayRecord) -> None:
        """Ask clients for their scores, and test the model."""
        strategy = self.bench.strategy
        self._seed_flower("evaluate")
        replies: list[Message] = []
        if self.config.eval_clients != 0:
            with part(BROADCAST), self._evaluating(grid):
                messages = strategy.configure_evaluate(self._round, arrays, ConfigRecord(), grid)
            replies = grid.send_and_receive(messages)
            strategy.aggregate_evaluate(self._round, with_common_metrics(replies))
        self._evaluated(arrays, self._settle(replies))
        if self.bench.spec.new:
            with part(BROADCAST), grid.cohort(sorted(self.bench.spec.new)):
                messages = strategy.configure_evaluate(self._round, arrays, ConfigRecord(), grid)
            grid.send_and_receive(messages)
            self.history[-1]["new_clients"] = self._evaluation.new_clients(self._settle([]))

    @timed(OTHER)
    def _chosen(self, grid: EngineGrid) -> list[int] | None:
        """Partitions of this round's clients: a function of (seed, round), and of who a system lets reach.

        ``None`` shows all of them, and leaves it to the strategy whom it asks.
        """
        count = self.config.clients_per_round
        if self.bench.asynchronous:
            return None
        rng = generator(self.config.seed, "clients", self._round)
        if isinstance(grid, SystemGrid):
            return grid.chosen(count, rng)
        if count is None:
            return self._members.tolist() if self.bench.spec.new else None
        chosen: list[int] = rng.choice(self._members, count, replace=False).tolist()
        return chosen

    def _everyone(self, grid: EngineGrid) -> AbstractContextManager[None]:
        """A block in which a strategy sees all clients, whomever a system lets it reach."""
        named = isinstance(grid, SystemGrid) or self.bench.spec.new
        return grid.cohort(self._members.tolist() if named else None)

    def _evaluating(self, grid: EngineGrid) -> AbstractContextManager[None]:
        """A block in which a strategy sees the clients that evaluate: a function of (seed, round)."""
        count = self.config.eval_clients
        if count is None:
            return self._everyone(grid)
        rng = generator(self.config.seed, "evaluation clients", self._round)
        return grid.cohort(rng.choice(self._members, count, replace=False).tolist())

    @timed(OTHER)
    def _tell_time(self, grid: EngineGrid) -> None:
        """Write down what a system's clock shows."""
        if isinstance(grid, SystemGrid):
            self._clock = grid.now
            self.directory.record([self._row("train", "global", None, "virtual_seconds", grid.now)])

    def _seed_flower(self, phase: str) -> None:
        """Flower draws clients from Python's ``random``, and noise from NumPy's global stream."""
        seed = torch_seed(self.config.seed, f"flower {phase}", self._round)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - Flower's own choice

    # --- what is observed ------------------------------------------------------------------------

    def _observe(self, exchange: Exchange) -> None:
        books = self.bytes[exchange.phase]
        books["down"] += exchange.down
        books["up"] += exchange.up
        for key, value in exchange.metrics.items():
            total = self.client_metrics[f"{exchange.phase}/{key}"]
            total[0] += value
            total[1] += 1
        self._exchanges.append(exchange)

    @timed(OTHER)
    def _settle(self, replies: list[Message]) -> list[Exchange]:
        """Write down what was observed since the last call, and stop if too many clients failed."""
        exchanges, self._exchanges = self._exchanges, []
        self.directory.record(
            self._row(e.phase, "client", e.node, key, value)
            for e in exchanges
            for key, value in (*e.metrics.items(), ("bytes_down", e.down), ("bytes_up", e.up))
        )
        for e in exchanges:
            if e.code == CLIENT_LOST:
                self.lost[str(e.error)] += 1
        failed = [e for e in exchanges if e.error is not None and e.code != CLIENT_LOST]
        self.failures += len(failed)
        for e in failed:
            log.error("client %d failed in round %d (%s):\n%s", e.node, self._round, e.phase, e.error)
        if failed and len(failed) > self.config.max_failures * max(len(exchanges), len(replies), 1):
            last = (failed[0].error or "").strip().splitlines()[-1]
            raise RunFailed(
                f"{len(failed)} of {len(exchanges)} clients failed in round {self._round}, more than "
                f"max_failures={self.config.max_failures} allows; client {failed[0].node}: {last}"
            )
        return exchanges

    def _row(self, phase: str, scope: str, node: Any, metric: str, value: float) -> dict[str, Any]:
        return {
            "round": self._round,
            "phase": phase,
            "scope": scope,
            "node": node,
            "metric": metric,
            "value": value,
        }

    def _evaluated(self, arrays: ArrayRecord, exchanges: list[Exchange]) -> None:
        """Write down how domains and clients fare."""
        point, domains = self._evaluation.point(self._round, arrays, exchanges)
        self.history.append(point | {"virtual_seconds": self._clock})
        rows = [self._row("evaluate", "domain", d, k, v) for d, s in domains.items() for k, v in s.items()]
        rows += [
            self._row("evaluate", "global", None, f"{self.task.headline}_{key}", point[key])
            for key in ("avg", "std", "val")
            if point[key] is not None
        ]
        self.directory.record(rows)
        log.info("round %d/%d %s", self._round, self.config.rounds, self._note())

    def _note(self) -> str:
        return f"{self.task.headline} {self.history[-1]['avg']:.4f}" if self.history else ""

    def _view(self) -> LiveView:
        view = LiveView(
            self.bench.label, self.config.rounds, self.task.headline, self.task.higher_is_better, self._round
        )
        for point in self.history:
            view.evaluated(point)
        return view

    def _show(self, view: LiveView) -> None:
        """Tell the view of a round that is done."""
        sent = sum(sum(books.values()) for phase, books in self.bytes.items() if phase != "evaluate")
        view.round_done(self._round, self._worked, sent, self.failures, sum(self.lost.values()))
        if self.history and self.history[-1]["round"] == self._round:
            view.evaluated(self.history[-1])

    # --- going on --------------------------------------------------------------------------------

    def _checkpoint(self, arrays: ArrayRecord, grid: EngineGrid | None = None) -> None:
        """Keep the weights after the last complete round; with the engine, all that the next depends on."""
        weights = {k: v.numpy() for k, v in arrays.items()}
        state = None
        if grid is not None:
            state = {
                "strategy": state_dict(self.bench.strategy),
                "clients": {k: from_records(v) for k, v in grid.client_states().items()},
                "engine": grid.engine_state(),
                "books": {name: getattr(self, name) for name in _BOOKS},
                "settings": settings(self.config),
                "order": list(weights),  # which safetensors does not keep, and Flower pairs arrays by
            }
        self.directory.checkpoint(self._completed, weights, state)

    def restore(self, server_round: int, weights: Weights, state: dict[str, Any]) -> None:
        """Go on after a round, from what :meth:`_checkpoint` kept."""
        self._round = self._completed = server_round
        load_state_dict(self.bench.strategy, state["strategy"])
        for name, book in state["books"].items():
            own = getattr(self, name)
            setattr(
                self, name, type(own)(own.default_factory, book) if isinstance(own, defaultdict) else book
            )
        arrays = ArrayRecord({k: Array(weights[k]) for k in state["order"]})
        clients = {int(k): to_records(v) for k, v in state["clients"].items()}
        self._restored = arrays, clients, state.get("engine", {})

    def _forecasts(self, grid: EngineGrid, arrays: ArrayRecord) -> None:
        """Draw what the best, the middling and the worst client forecast with what they were tested with."""
        scores = self.history[-1]["clients"] if self.history else {}
        if not isinstance(self.task, Forecasting) or not scores:
            return
        ranked = sorted(scores, key=lambda node: float(scores[node]))
        named = {ranked[len(ranked) // 2]: "median", ranked[-1]: "worst", ranked[0]: "best"}
        self._seed_flower("evaluate")
        with self._evaluating(grid):  # the messages of the last evaluation once more
            asked = self.bench.strategy.configure_evaluate(self._round, arrays, ConfigRecord(), grid)
        grid.observer = None  # what is drawn is no part of the method, and so in no book
        ids = {FIRST_NODE_ID + int(node): node for node in named}
        replies = grid.send_and_receive(
            Message(m.content, m.metadata.dst_node_id, f"query.{FORECAST}")
            for m in asked
            if m.metadata.dst_node_id in ids
        )
        forecasts = {}
        for reply in replies:
            node = ids[reply.metadata.src_node_id]
            if reply.has_error():
                log.warning("client %s gave no forecast to draw:\n%s", node, reply.error.reason)
                continue
            records = {key: numpy_of(found) for key, found in reply.content.array_records.items()}
            domain, score = self.bench.federation.domains[int(node)], scores[node]
            title = f"{named[node]}: client {node} ({domain}), MSE {score:.3f} of scaled values"
            forecasts[node] = Forecast(title, **records["window"], repeated=records["repeated"])
        if not forecasts:
            return
        whose = "clients' own models, " if self.personal else ""
        title = f"{self.bench.label}: {whose}forecasts of middling error after round {self._round}"
        shown = [forecasts[node] for node in ranked if node in forecasts]
        forecast_picture(shown, self.directory.path / "forecasts.png", title)

    def _write_profile(self, profile: Profile) -> None:
        """Where the time of the rounds that were completed went."""
        if not (rows := profile.table()):
            return
        directory = self.directory.path / "profile"
        directory.mkdir(exist_ok=True)
        with (directory / "trace.json").open("w", encoding="utf-8") as file:
            json.dump(profile.trace(), file)
        write_csv(rows, directory / "table.csv")
        (directory / "table.md").write_text(markdown(rows), encoding="utf-8")
        profile_picture(rows, directory / "profile.png", f"{self.bench.label}: seconds of every round")

    def _summary(self, arrays: ArrayRecord, status: str) -> dict[str, Any]:
        """Everything that a comparison reads; only ``timing`` depends on the clock."""
        validated = [p for p in self.history if p["val"] is not None]
        sign = 1 if self.task.higher_is_better else -1
        best = max(validated, key=lambda p: sign * p["val"]) if validated else None
        return {
            "status": status,
            "label": self.bench.label,
            "seed": self.config.seed,
            "choices": OmegaConf.to_container(self.config.choices),
            "settings": settings(self.config),
            "task": self.task.kind,
            "headline": self.task.headline,
            "higher_is_better": self.task.higher_is_better,
            "personal": self.personal,
            "rounds": self._round,
            "split": describe_split(self.bench.federation),
            "notes": self.bench.federation.dataset.notes,
            "final": self.history[-1] if self.history else None,
            "last_5": _mean_point(self.history[-_LAST:]) if self.history else None,
            "best_validation": best,
            "history": [{k: p[k] for k in ("round", "avg", "val", "virtual_seconds")} for p in self.history],
            "bytes": {k: dict(v) for k, v in sorted(self.bytes.items())},
            "client_metrics": {k: total / n for k, (total, n) in sorted(self.client_metrics.items())},
            "diagnostics": dict(sorted(getattr(self.bench.strategy, "diagnostics", {}).items())),
            "failures": self.failures,
            "lost": self.lost,
            "virtual_seconds": self._clock,
            "weights_sha256": weights_digest({k: v.numpy() for k, v in arrays.items()}),
            "timing": {k: round(v, 3) for k, v in self.seconds.items()},
        }


def _mean_point(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over evaluated rounds of what a comparison shows."""
    names = dict.fromkeys(d for p in points for d in p["domains"])  # clients that evaluate may differ
    return {
        "rounds": [p["round"] for p in points],
        "domains": {d: statistics.fmean(p["domains"][d] for p in points if d in p["domains"]) for d in names},
        "avg": statistics.fmean(p["avg"] for p in points),
        "std": statistics.fmean(p["std"] for p in points),
        **{key: _mean_known(p[key] for p in points) for key in ("mean_client", "worst_client")},
    }


def _mean_known(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def run(config: DictConfig, directory: str | Path) -> dict[str, Any]:
    """Run one composed config into a new directory and return its summary.

    Parameters
    ----------
    config : DictConfig
        From :func:`fedbench.config.compose.plan`.
    directory : path
        Made only once every part of the run could be built.

    Raises
    ------
    UserError, ScenarioError, ClientError
        For a mistake in what was asked for; nothing is written then.
    RunFailed
        If too many clients failed; what the run had is kept.
    """
    bench = build(config)
    tracker = tracker_of(config)
    written = RunDirectory(directory, as_yaml(config))
    with (
        _logged(written.path / "log.txt"),
        tracking(tracker, written.path, config, run_name(config)) as written.watch,
    ):
        title = f"{config.choices.data}, {config.choices.scenario}, seed {config.seed}"
        try:
            return Run(bench, written).execute()
        finally:
            split_picture(bench.federation, written.path / "split.png", title=title)


def resume(directory: str | Path) -> dict[str, Any]:
    """Go on with an interrupted run after its last checkpoint, to the same end as if it had not stopped.

    Parameters
    ----------
    directory : path
        Of the run; its summary is replaced.

    Raises
    ------
    UserError
        If the directory holds no such run, or the run is complete.
    RunFailed
        As :func:`run`.
    """
    path = Path(directory).expanduser()
    if not (path / "config.yaml").is_file():
        raise UserError(f"{directory}: holds no run (no config.yaml)")
    if (path / "summary.json").is_file() and read_summary(path)["status"] == "completed":
        raise UserError(f"{directory}: the run is complete; nothing is left to do")
    server_round, weights, state = load_checkpoint(path)
    config = OmegaConf.load(path / "config.yaml")
    assert isinstance(config, DictConfig)
    config["settings"] = state["settings"]
    bench = build(config)
    tracker = tracker_of(config)
    written = RunDirectory.again(path, server_round)
    going_on = Run(bench, written)
    going_on.restore(server_round, weights, state)
    with (
        _logged(path / "log.txt"),
        tracking(tracker, path, config, run_name(config), server_round) as written.watch,
    ):
        log.info("going on after round %d", server_round)
        return going_on.execute()


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """A block whose log goes to a file."""
    for name in ("flwr", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def run_name(config: DictConfig) -> str:
    """Name of a run's directory that says what it was."""
    parts = config.choices
    around = [n for n in (parts.align, parts.personalization) if n not in ("none", parts.strategy)]
    return "-".join([parts.strategy, *around, parts.scenario, parts.data, f"s{config.seed}"])


def stamp() -> str:
    """Local date and time, for directory names."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")
