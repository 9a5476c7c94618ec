"""Messages about a chunk of rounds, and the signs by which a run counts as diverged."""

import cases
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.experiment import loop, participation, records
from fedjax_masks.experiment.notes import count_broken, evaluation_note, notes
from fedjax_masks.simulation import RoundMetrics
from fedjax_masks.transforms.attacks import with_attack


def metrics_of(*rounds):
    """Metrics of rounds as words: ``t`` trained, ``b`` not finite, ``a`` away, ``l`` late, ``x`` lost."""
    fates = np.array([list(fates) for fates in rounds])
    return RoundMetrics(
        ids=np.tile(np.arange(fates.shape[1], dtype=np.int32), (len(rounds), 1)),
        weight=(fates == "t").astype(np.float32),
        dropped=fates != "t",
        trained=np.isin(fates, ["t", "l"]),
        bytes_up=np.zeros(fates.shape, np.int64),
        bytes_down=np.zeros(fates.shape, np.int64),
        train={name: (fates == name[0]).astype(np.float32) for name in ("away", "late")}
        | {"lost": (fates == "x").astype(np.float32)},
        server={},
    )


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        (["ttt", "talx"], None),
        (["ttt", "tbt"], "round 12: 1 of 3 updates left out of the merge: not finite, or huge; client 1"),
        (["bbt", "ttt", "btt", "ttt"], "rounds 11-13: 3 of 9 updates left out ...; clients 0, 1"),
        (
            ["bbbbbbbb", "aaxlbbbb"],
            "rounds 11-12: 12 of 12 updates left out ...; clients 0, 1, 2, 3, 4, and 3 more",
        ),
    ],
)
def test_updates_left_out_are_one_line_for_all_rounds(rounds, expected):
    width = max(map(len, rounds))
    lines = notes(metrics_of(*(fates.ljust(width, "t") for fates in rounds)), 10)
    if expected is None:
        assert lines == ()
    else:
        assert lines == (expected.replace("out ...;", "out of the merge: not finite, or huge;"),)


@pytest.mark.parametrize(
    ("counts", "is_last", "layers"),
    [
        ([1, 1, 1], True, "conv1"),
        ([1, 1, 1], False, None),
        ([1, 2, 1], True, None),
        ([1, 1, 9], True, "conv1"),  # the last one was away
    ],
)
def test_gates_that_choose_alike_for_all_images_are_reported_at_the_end(counts, is_last, layers):
    metrics = metrics_of("tta", "tta")
    values = np.array([[5, 5, 5], counts], np.float32)
    metrics.train.update({"selections/conv1": values, "selections/conv2": np.full_like(values, 2)})
    lines = notes(metrics, 10, is_last=is_last)
    assert len(lines) == (layers is not None)
    assert all(line.startswith(f"round 12: the gates of {layers} keep the same channels") for line in lines)


@pytest.mark.parametrize(
    ("before", "rounds", "expected"),
    [
        (4, ["bbb"], 7),
        (4, ["bbb", "bba"], 9),
        (4, ["bbt", "bbb"], 3),
        (4, ["bbl"], 0),  # the late one is well
        (4, ["aax", "aaa"], 4),
    ],
)
def test_broken_updates_are_counted_in_a_row(before, rounds, expected):
    assert count_broken(before, metrics_of(*rounds)) == expected
    first, *others = rounds  # chunks are no matter
    assert (
        not others or count_broken(count_broken(before, metrics_of(first)), metrics_of(*others)) == expected
    )


@pytest.mark.parametrize(
    ("rate", "hostile", "expected"),
    [
        (0.1, 0.34, False),
        (1e25, 0.0, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0.1, 0.0, False), (1e4, 0.0, True))),
    ],
)
def test_a_run_has_diverged_where_nothing_is_left_not_where_a_few_send_nan(rate, hostile, expected):
    model = fm.models.mlp(cases.task(), hidden=(8,))
    algorithm = with_attack(fm.fedavg(model, optax.sgd(rate), batch_size=4), "nan", share=hostile)
    run = fm.simulate(algorithm, cases.task(), rounds=3, cohort=9, eval_every=1, plan="scan")
    assert [record["diverged"] for record in run.records][::2] == [expected] * 2
    assert run.summary["diverged"] == expected
    assert run.records[-1]["clients_dropped"] == round(9 * hostile) or expected


def test_totals_do_not_depend_on_where_chunks_end():
    """0.1 and 1e16 are told apart by the order of additions."""
    random = np.random.default_rng(0)
    rounds = ["tbx", "bbb", "btl", "bbb", "axl", "bbb"]
    figures = random.choice([0.1, 1e16, 3.3], (4, len(rounds)))

    def chunk(first, end):
        metrics = metrics_of(*rounds[first:end])
        train = metrics.train | {"flops": np.repeat(figures[3, first:end, None], 3, axis=1)}
        server = dict(zip(("seconds", "joules", "flops"), figures[:3, first:end]))
        return metrics._replace(train=train, server=server)

    found = []
    for ends in ([6], [1, 4, 6], [1, 2, 3, 4, 5, 6]):
        totals, done = records.Totals(), 0
        for end in ends:
            totals, done = records.add(totals, chunk(done, end), 0.0), end
        found.append(totals)
    assert found[0] == found[1] == found[2]
    assert (found[0].round, found[0].broken) == (6, 3)
    assert found[0].clients_dropped == 16
    assert participation.members(found[0].seen, np.arange(3)).tolist() == [True, True, True]


def test_long_evaluations_are_named():
    message = evaluation_note(372.0, 62.0) or ""
    assert message.startswith("an evaluation takes 6 min, and the rounds before it 62 s; a smaller ")
    assert "eval_clients" in message
    assert evaluation_note(372.0, 400.0) is None  # the rounds are longer
    assert evaluation_note(50.0, 1.0) is None  # nobody waits for it


@pytest.mark.parametrize("message", ["long", None])
def test_long_evaluations_are_named_once(monkeypatch, caplog, message):
    monkeypatch.setattr(loop, "evaluation_note", lambda seconds, rounds_seconds: message)
    simulation = fm.make_simulation(cases.algorithm("fedavg"), cases.task_for("mlp"), cohort=2, chunk=1)
    loop.run_rounds(simulation, simulation.init(), rounds=3, eval_every=1, on_chunk=[[]])
    assert caplog.messages == ([message] if message else [])
