"""Progress for people: when lines come, what they say, and where none may."""

import sys
from types import SimpleNamespace

import cases
import pytest
from remembered import compile_once

import fedjax_masks as fm
from fedjax_masks.core import progress as lines_of
from fedjax_masks.core.progress import activity, lines, say, silence
from fedjax_masks.experiment.progress import describe, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when it is told to; reminders come only when they are called for."""
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(lines_of, "time", SimpleNamespace(monotonic=lambda: time.now))
    return time


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    with compile_once():
        yield


def simulate(**options):
    return fm.simulate(cases.algorithm("fedavg"), cases.task(), rounds=5, cohort=2, eval_every=1, **options)


def told(capsys):
    out, error = capsys.readouterr()
    assert out == ""
    return error.splitlines()


def test_without_a_terminal_the_first_and_the_last_rounds_have_a_line(capsys):
    chunks = []
    with progress("fedavg", start=0, rounds=5, quiet=False) as show:
        run = simulate(on_chunk=[show, chunks.append])
    compiling, first, last = told(capsys)
    assert compiling == "fedavg: compiling"
    assert first == f"fedavg: 1/5 rounds, {describe(chunks[0])}"
    assert last.startswith("fedavg: 5/5 rounds, ")
    assert last.endswith(f"/s, {describe(chunks[-1])}")
    assert "left" not in last
    record = run.records[-1]
    assert (
        f"personal {record['personal_accuracy_mean_seen']:.1%} (seen {record['clients_seen']} of 9 " in last
    )
    assert f"all {record['personal_accuracy_mean']:.1%})" in last
    assert f"global {record['global_accuracy']:.1%}" in last
    total = record["bytes_up_total"] + record["bytes_down_total"]
    assert last.endswith(f"{total / 1e6:.3g} MB")


def test_nothing_is_printed_where_it_is_not_wanted(capsys):
    with progress("a", start=0, rounds=5, quiet=True) as show:
        simulate(on_chunk=[show])
    with progress("a", start=5, rounds=5, quiet=False), silence(False):
        pass
    with silence(), progress("a", start=0, rounds=5, quiet=False) as show, lines("b") as tell, silence(False):
        say("c")
        tell(1, now=True)
        show(None)
    assert told(capsys) == []


def test_a_simulation_shows_its_progress_in_a_notebook_or_when_asked(capsys, monkeypatch):
    simulate()
    assert told(capsys) == []
    simulate(progress=True)
    assert len(told(capsys)) == 3
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    simulate()
    assert len(told(capsys)) == 3
    simulate(progress=False)
    assert told(capsys) == []
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))  # a script
    simulate()
    assert told(capsys) == []


@pytest.mark.parametrize(
    ("passed", "pause"),
    [(0, 10), (200, 10), (400, 20), (3600, 180), (10**6, 600)],
)
def test_lines_become_rarer_in_long_work_but_never_stop(capsys, clock, passed, pause):
    written = lines_of._Lines("work", 10**9, "steps", 0, "compiling")
    clock.now += passed
    written.show(1, now=True)
    told(capsys)
    for waited in (0.0, 0.5, 0.99):
        clock.now = 100 + passed + waited * pause
        written.show(2)
        written.remind()
        assert told(capsys) == []
    clock.now = 100 + passed + 1.06 * pause  # the pause itself grows by a twentieth
    written.remind()
    assert len(told(capsys)) == 1


def test_a_line_says_how_much_how_fast_and_how_long_still(capsys, clock):
    written = lines_of._Lines("work", 50, "rounds", 10, "compiling")
    clock.now += 30
    written.remind()
    written.show(20, "half", now=True)  # after a compilation, from which no rate follows
    clock.now += 10
    written.show(25)
    clock.now += 10
    written.show(50, "", now=True)
    assert told(capsys) == [
        "work: compiling, 30 s so far",
        "work: 20/50 rounds, half",
        "work: 25/50 rounds, 0.5/s, 50 s left, half",
        "work: 50/50 rounds, 1.5/s, half",
    ]


def test_short_work_is_not_mentioned_and_its_thread_ends(capsys):
    import threading

    before = threading.active_count()
    with activity("this"), lines("that", total=3) as show:
        show(1)
        show(3)
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
    assert told(capsys) == []


@pytest.mark.parametrize(
    ("variables", "lines_over"), [({}, True), ({"JPY_PARENT_PID": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_of_a_cell_gets_plain_lines(capsys, monkeypatch, variables, lines_over):
    for name in ("JPY_PARENT_PID", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not lines_of.on_terminal()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert lines_of.on_terminal() == lines_over
