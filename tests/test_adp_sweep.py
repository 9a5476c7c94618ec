"""Tables of a sweep of gated networks, from lines made up."""

import adp_sweep
from common import by_setting

from fedjax_masks.algorithms.gate_report import SELECTIONS


def line(setting, seed, accuracy, *, bytes_up=100, extra=None):
    costs = [10_000_000 * n for n, _ in enumerate(accuracy, 1)]
    return {
        "run": f"{setting},seed={seed}",
        "seed": seed,
        "algorithm": {"name": setting, "ratio": 0.7},
        "model": {"name": "resnet20", "channels": [8, 16, 32], "norm": None},
        "bytes_up_total": bytes_up,
        "evaluations": {"global_accuracy": accuracy, "bytes": costs},
        "late_global_accuracy": sum(accuracy[-2:]) / 2,
        "extra": extra or {},
    }


GROUPS = by_setting(
    [
        line("fedavg", 0, [0.1, 0.2, 0.3, 0.4]),
        line("fedavg", 1, [0.1, 0.3, 0.4, 0.5]),
        line("adp", 0, [0.2, 0.3, 0.3, 0.4], bytes_up=111, extra={f"{SELECTIONS}conv1": 4.0}),
        line("adp", 1, [0.1, 0.2, 0.5, 0.6], bytes_up=111, extra={f"{SELECTIONS}conv1": 8.0}),
    ]
)


def test_accuracies_pair_runs_by_seed():
    table = adp_sweep.accuracy_table(GROUPS)
    assert "| adp | 45.0 ± 127.1 | 5.0 ± 63.5 | 50.0 ± 127.1 | 5.0 ± 63.5 | 1.110 | 0.618 | 2 |" in table


def test_bytes_to_a_target_that_a_seed_misses_are_not_averaged():
    table = adp_sweep.bytes_table(GROUPS, [0.3, 0.6])
    assert "| fedavg | 25.0 ± 63.5 (100.0 ± 0.0 %) | 0 of 2 seeds |" in table
    assert "| adp | 25.0 ± 63.5 (108.3 ± 529.4 %) | 1 of 2 seeds |" in table


def test_selections_are_of_the_settings_that_report_them():
    assert "| layer | adp |" in adp_sweep.selections_table(GROUPS)
    assert "| conv1 | 6.0 ± 25.4 |" in adp_sweep.selections_table(GROUPS)
