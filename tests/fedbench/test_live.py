"""The view of a run in progress: what a terminal draws and what a log says."""

import io
import re
import time

import pytest
from rich.console import Console
from rich.text import Text

from fedbench.live import LiveView, sparkline

BLOCKS = "▁▂▃▄▅▆▇█"


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def console(width=120, terminal=True, clock=None, file=None, **options):
    return Console(
        file=file or io.StringIO(), width=width, height=40, force_terminal=terminal, color_system=None,
        get_time=clock, _environ={"TERM": "xterm"}, **options,
    )  # fmt: skip


def view(rounds=10, higher=True, **options):
    clock = Clock()
    return LiveView("fedprox", rounds, "accuracy", higher, console=console(clock=clock, **options)), clock


def point(number, avg, **domains):
    return {"round": number, "avg": avg, "val": avg, "clients": {}, "domains": domains or {"a": avg}}


def drawn(live):
    """What a terminal shows now, as lines."""
    with live.console.capture() as capture:
        live.console.print(live)
    lines = capture.get().splitlines()
    assert all(Text(line).cell_len <= live.console.width for line in lines)
    return lines


def run(live, clock, values, seconds=2.0, clients=4):
    for number, value in enumerate(values, live._start + 1):
        clock.now += seconds
        live.round_done(number, clients, 1_000_000 * number, 0, 0)
        live.evaluated(point(number, value))


# --- a terminal --------------------------------------------------------------------------------------


def test_before_the_first_round_nothing_is_claimed():
    live, clock = view()
    clock.now += 3
    top, books = drawn(live)
    assert top == "fedprox round 0/10 " + "─" * 40 + " 0:00:03 ETA -:--:--"
    assert books == "  - clients/s  0 bytes  0 failed  0 lost"


@pytest.mark.parametrize("width", [60, 120])
def test_it_shows_how_far_the_run_is_and_what_it_reached(width):
    live, clock = view(width=width)
    run(live, clock, [0.1, 0.5, 0.4])
    live.round_done(4, 4, 5_200_000, 2, 1)
    top, headline, domain, books = drawn(live)
    assert top.startswith("fedprox round 4/10 ━")
    bar = re.search("━+─+", top)[0]
    assert bar.count("━") == round(0.4 * len(bar))
    assert top.endswith("0:00:06 ETA 0:00:09")
    assert headline.split(maxsplit=2) == ["accuracy", "0.4000", "▁█▆ best on val 0.5000 (round 2)"]
    assert domain.split() == ["a", "0.4000", "▁█▆"]
    assert books == "  2.7 clients/s  5.2 MB  2 failed  1 lost"


def test_the_best_is_the_lowest_of_an_error():
    live, clock = view(higher=False)
    run(live, clock, [3.0, float("nan"), 1.25, 2.0])
    assert "2.0000 █ ▁▄ best on val 1.2500 (round 3)" in drawn(live)[1]


def test_what_is_left_shrinks_while_a_round_is_under_way():
    live, clock = view()
    run(live, clock, [0.5] * 4, seconds=3)
    assert drawn(live)[0].endswith("0:00:12 ETA 0:00:18")
    clock.now += 2
    assert drawn(live)[0].endswith("0:00:14 ETA 0:00:16")
    clock.now += 100
    assert drawn(live)[0].endswith("0:01:54 ETA 0:00:00")


def test_a_run_that_goes_on_counts_from_where_it_stopped():
    clock = Clock()
    live = LiveView("fedavg", 10, "accuracy", True, start_round=6, console=console(clock=clock))
    for number in (2, 4, 6):
        live.evaluated(point(number, number / 10))
    run(live, clock, [0.5])
    top, headline, *_ = drawn(live)
    assert "round 7/10" in top
    assert top.endswith("0:00:02 ETA 0:00:06")
    assert "0.5000 ▁▅█▆ best on val 0.6000 (round 6)" in headline


def test_eight_domains_are_shown_and_the_others_summed_up():
    live, _ = view(width=60)
    names = {f"a_domain_with_a_long_name_{i}": i / 10 for i in range(11)}
    live.evaluated(point(1, 0.5, **names))
    lines = drawn(live)
    assert len(lines) == 12
    assert [line.split()[1] for line in lines[2:10]] == [f"{i / 10:.4f}" for i in range(8)]
    assert lines[10].strip() == "and 3 more domains, 0.9000 on average"


@pytest.mark.parametrize("width", [20, 40, 60, 61, 79, 120, 400])
def test_no_line_is_longer_than_the_terminal(width):
    live, clock = view(rounds=100_000, width=width)
    live.label = "an_uncommonly_long_method+around_another_one+personalised"
    for number in range(1, 200):
        clock.now += 1000
        live.round_done(number, 10**6, 10**15 * number, 10**7, 10**7)
        live.evaluated(point(number, number**5.0, 写真とても長い名前の領域=0.5, b=-1e30))
    lines = drawn(live)  # which looks at their lengths
    assert len(lines) == 5
    live._done = True
    assert len(drawn(live)) == 3


def test_a_terminal_that_knows_ascii_alone_gets_no_other_sign():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    live, clock = view(file=file)
    run(live, clock, [0.0, 0.5, 1.0])
    lines = drawn(live)
    assert all(line.isascii() for line in lines)
    assert "_=#" in lines[1]


def test_it_is_drawn_by_itself_a_few_times_a_second_and_leaves_its_last_state():
    recorded = console(terminal=True, file=io.StringIO())
    with LiveView("fedavg", 2, "accuracy", True, console=recorded) as live:
        live.round_done(1, 4, 1000, 0, 0)
        live.evaluated(point(1, 0.25, photo=0.25))
        started = time.monotonic()
        deadline = started + 20
        while "photo" not in recorded.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        seen = recorded.file.getvalue()
        time.sleep(1)
        frames = recorded.file.getvalue().count("round 1/2") - seen.count("round 1/2")
        live.round_done(2, 4, 2000, 0, 0)
        live.evaluated(point(2, 0.75, photo=0.75))
    assert "photo" in seen
    assert frames <= 5
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", recorded.file.getvalue()).split("\r")[-1]
    top, headline, books = last.strip("\n").splitlines()
    assert "round 2/2" in top
    assert "ETA" not in top
    assert "0.7500 ▁█ best on val 0.7500 (round 2)" in headline
    assert books.endswith("2.0 kB  0 failed  0 lost")


def test_validation_rows_choose_the_best_round():
    live, _ = view()
    for number, avg, val in ((1, 0.5, 0.9), (2, 0.8, 0.7)):
        live.round_done(number, 4, 0, 0, 0)
        live.evaluated(point(number, avg) | {"val": val})
    assert "best on val 0.5000 (round 1)" in drawn(live)[1]
    live.evaluated(point(3, 0.6) | {"val": None})
    assert "best on val 0.5000 (round 1)" in drawn(live)[1]


def test_without_validation_rows_no_round_is_the_best():
    live, _ = view()
    live.round_done(1, 4, 0, 0, 0)
    live.evaluated(point(1, 0.5) | {"val": None})
    assert "best" not in "".join(drawn(live))


def test_an_error_leaves_the_terminal_as_it_was():
    live, _ = view()
    with pytest.raises(ZeroDivisionError), live:
        _ = 1 / 0
    out = live.console.file.getvalue()
    assert out.count("\x1b[?25l") == 1  # no cursor
    assert out.rstrip().endswith("\x1b[?25h")


# --- a log -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 120])
def test_a_log_gets_one_plain_line_for_each_evaluation(width):
    live, clock = view(terminal=False, width=width)
    with live:
        run(live, clock, [0.25, 0.75])
        clock.now += 2
        live.round_done(3, 4, 3_000_000, 1, 0)  # not evaluated
        clock.now += 2
        live.round_done(4, 4, 4_000_000, 1, 0)
        live.evaluated(point(4, 0.5, photo=0.4, art=0.6))
    out = live.console.file.getvalue()
    assert re.search(r"[^\n -~]", out) is None
    assert out.splitlines() == [
        "fedprox round 1/10: accuracy 0.2500; best on val 0.2500 (round 1); a 0.2500; "
        "elapsed 0:00:02, ETA 0:00:18; 2.0 clients/s, 1.0 MB, 0 failed, 0 lost",
        "fedprox round 2/10: accuracy 0.7500; best on val 0.7500 (round 2); a 0.7500; "
        "elapsed 0:00:04, ETA 0:00:16; 2.0 clients/s, 2.0 MB, 0 failed, 0 lost",
        "fedprox round 4/10: accuracy 0.5000; best on val 0.7500 (round 2); photo 0.4000, art 0.6000; "
        "elapsed 0:00:08, ETA 0:00:12; 2.0 clients/s, 4.0 MB, 1 failed, 0 lost",
    ]


def test_a_log_repeats_no_evaluation_of_the_rounds_before():
    recorded = console(terminal=False)
    with LiveView("fedavg", 4, "accuracy", True, start_round=2, console=recorded) as live:
        live.evaluated(point(1, 0.9))
        live.evaluated(point(2, 0.5))
        live.evaluated(point(3, 0.7, **{f"d{i}": i / 10 for i in range(10)}))
    (line,) = recorded.file.getvalue().splitlines()
    assert "round 3/4: accuracy 0.7000; best on val 0.9000 (round 1);" in line
    assert "d7 0.7000, 2 more;" in line


# --- sparklines --------------------------------------------------------------------------------------


def test_a_sparkline_rises_with_its_values():
    assert sparkline(range(8), 8) == BLOCKS
    assert sparkline([7, 0, 3.5], 8) == "█▁▅"
    assert sparkline([2, 2, 2], 8) == "▄▄▄"
    assert sparkline([], 8) == sparkline([1], 0) == sparkline([1], -3) == ""


def test_a_sparkline_of_many_values_ends_with_the_last():
    assert sparkline(range(800), 8) == BLOCKS
    assert sparkline([0] * 99 + [1], 10) == "▁" * 9 + "█"
    assert len(sparkline(range(1000), 37)) == 37


def test_a_sparkline_leaves_out_what_is_no_number():
    assert sparkline([0, float("nan"), 7, float("inf")], 8) == "▁ █ "
    assert sparkline([float("nan")], 8) == " "
