"""Tables of a sweep of gated networks, from lines made up."""

import adp_sweep


def line(setting, seed, accuracy, **others):
    rounds = list(range(1, len(accuracy) + 1))
    numbers = {"bytes": [10_000_000 * n for n in rounds], "bytes_up": 100, "macs": 1000, "selections": {}}
    return {
        "run": f"{setting},seed={seed}",
        "seed": seed,
        "rounds": rounds,
        "accuracy": accuracy,
        **numbers,
        **others,
    }


LINES = [
    line("fedavg", 0, [0.1, 0.2, 0.3, 0.4]),
    line("fedavg", 1, [0.1, 0.3, 0.4, 0.5]),
    line("adp", 0, [0.2, 0.3, 0.3, 0.4], macs=618, bytes_up=111, selections={"conv1": 4.0}),
    line("adp", 1, [0.1, 0.2, 0.5, 0.6], macs=618, bytes_up=111, selections={"conv1": 8.0}),
]


def test_tables_of_gates_pair_runs_by_seed():
    summary, costs, selections = adp_sweep.tables(LINES, [0.3, 0.6]).split("\n\n")
    assert "| adp | 38.3 ± 63.5 | 3.3 ± 0.0 | 50.0 ± 127.1 | 1.110 | 0.618 | 2 |" in summary
    assert "| fedavg | 25.0 ± 63.5 (100.0 ± 0.0 %) | 0 of 2 seeds |" in costs
    assert "| adp | 25.0 ± 63.5 (108.3 ± 529.4 %) | 1 of 2 seeds |" in costs
    assert "| conv1 | 6.0 ± 25.4 |" in selections
