from types import SimpleNamespace

import jax
import pytest

from fedjax_masks.simulation.memory import fit_plan
from fedjax_masks.simulation.plan import Plan, parse_plan


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("auto", "scan,mesh:8"),
        ("auto,mesh:2", "scan,mesh:2"),
        ("scan", "scan"),
        ("vmap", "blocks:10"),
        ("vmap,mesh:4", "blocks:3,mesh:4"),
        ("blocks:4", "blocks:4"),
        ("blocks:40,mesh:2", "blocks:10,mesh:2"),
    ],
)
def test_plans_are_read_as_written(text, want):
    assert jax.device_count() == 8
    assert str(parse_plan(text, cohort=10)) == want


@pytest.mark.parametrize("text", ["", "blocks", "blocks:0", "blocks:x", "rows", "scan,mesh:0", "auto,mesh:9"])
def test_other_plans_are_refused_by_name(text):
    with pytest.raises(ValueError, match="plan="):
        parse_plan(text, cohort=10)


def test_what_does_not_fit_gets_smaller_blocks_and_then_fewer_devices():
    tried = []

    def compile_for(plan):
        tried.append((plan.block, plan.devices))
        size = plan.block * 10
        return SimpleNamespace(
            memory_analysis=lambda: SimpleNamespace(
                argument_size_in_bytes=size,
                output_size_in_bytes=0,
                alias_size_in_bytes=0,
                temp_size_in_bytes=0,
            )
        )

    _, plan, need = fit_plan(compile_for, Plan(4, 2), available=15)
    assert tried == [(4, 2), (2, 2), (1, 2), (1, 1)]
    assert (plan.block, plan.devices, need) == (1, 1, 10)
    with pytest.raises(MemoryError, match="one at a time"):
        fit_plan(compile_for, Plan(1), available=5)
