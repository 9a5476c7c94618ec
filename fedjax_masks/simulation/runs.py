"""The layout of several runs in one program, with different seeds and values of numeric options.

Runs are independent, so that the devices divide the runs, and not the clients of a run. One run is the same
program without the axis of runs; there the devices divide its clients.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from fedjax_masks.core import target
from fedjax_masks.core.types import PyTree
from fedjax_masks.simulation.mapping import replica_sharding
from fedjax_masks.simulation.plan import Plan, parse_plan

_AXIS = "runs"


class Runs(NamedTuple):
    """The layout of runs, as a record of functions.

    Attributes:
      plan: The plan of clients within a run; its reason also describes the layout of runs.
      sharding: The sharding of arrays with one entry per run.
      shared_sharding: The sharding of arrays that all runs share.
      map: ``(function, shared, runs) -> results`` of ``function(shared, run)`` for every run.
      shapes: ``(shapes of one run) -> shapes`` of all runs.
      stack: ``(one tree per run) -> tree`` of all runs, on the host.
      split: ``(tree of all runs, on the host) -> one tree per run``.
      take: ``(tree of all runs, run) -> tree`` of one run.
      join: The inverse of ``take``: ``(one tree per run) -> tree`` of all runs.
    """

    plan: Plan
    sharding: Sharding
    shared_sharding: Sharding
    map: Callable[[Callable[[PyTree, PyTree], PyTree], PyTree, PyTree], PyTree]
    shapes: Callable[[PyTree], PyTree]
    stack: Callable[[Sequence[PyTree]], PyTree]
    split: Callable[[PyTree], list[PyTree]]
    take: Callable[[PyTree, int], PyTree]
    join: Callable[[Sequence[PyTree]], PyTree]


Layout = Callable[[Plan], Runs]
"""``(plan) -> layout``: the plan divides the clients of one run, or several runs."""


def lay_out_runs(text: str, *, cohort: int, num_runs: int) -> tuple[Plan, Layout]:
    """Makes the first plan of a program, and the layout of runs under this plan or under a smaller plan.

    Args:
      text: The plan of one run, see :func:`~fedjax_masks.simulation.plan.parse_plan`. For several runs, its
        devices are divided among the runs.
      cohort: Clients per round.
      num_runs: The number of runs.

    Raises:
      UserError: The text is no plan.
    """
    if num_runs == 1:
        return parse_plan(text, cohort=cohort), _one_run
    kind, _, mesh = text.partition(",mesh:")
    devices = parse_plan(text, cohort=num_runs).devices if mesh else min(num_runs, len(target.devices()))
    inner = parse_plan(f"{kind},mesh:1", cohort=cohort)
    if target.is_cpu():
        plan = Plan(1, devices, "a core runs one run after the other from its cache")
    else:
        plan = Plan(-(-num_runs // devices), devices, "an accelerator runs all at once")
    return plan, partial(_many_runs, inner, num_runs)


def _one_run(plan: Plan) -> Runs:
    sharding = replica_sharding(plan)
    return Runs(
        plan=plan,
        sharding=sharding,
        shared_sharding=sharding,
        map=lambda function, shared, run: function(shared, run),
        shapes=lambda tree: tree,
        stack=lambda trees: trees[0],
        split=lambda tree: [tree],
        take=lambda tree, run: tree,
        join=lambda trees: trees[0],
    )


def _many_runs(inner: Plan, num_runs: int, plan: Plan) -> Runs:
    full = plan.block * plan.devices
    total = -(-num_runs // full) * full  # the last run is repeated to fill blocks on every device
    mesh = Mesh(target.devices()[: plan.devices], (_AXIS,))
    sharding, shared_sharding = (
        NamedSharding(mesh, PartitionSpec(_AXIS)),
        NamedSharding(mesh, PartitionSpec()),
    )

    def map_runs(function: Callable[[PyTree, PyTree], PyTree], shared: PyTree, runs: PyTree) -> PyTree:
        def on_device(shared: PyTree, runs: PyTree) -> PyTree:
            # Without a width, lax.map is a scan: a vmap over one run would still batch its convolutions.
            width = plan.block if plan.block > 1 else None
            return jax.lax.map(partial(function, shared), runs, batch_size=width)

        if plan.devices == 1:
            return on_device(shared, runs)
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(_AXIS)),
            out_specs=PartitionSpec(_AXIS),
            check_vma=False,  # as in the map over clients
        )(shared, runs)

    def pad(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, total - len(values)), *[(0, 0)] * (values.ndim - 1)], mode="edge")

    def stack(trees: Sequence[PyTree]) -> PyTree:
        return jax.tree.map(lambda *each: pad(np.stack(each)), *trees)

    return Runs(
        plan=replace(inner, reason=_describe(num_runs, plan)),
        sharding=sharding,
        shared_sharding=shared_sharding,
        map=map_runs,
        shapes=lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct((total, *a.shape), a.dtype), tree),
        stack=stack,
        split=lambda tree: [jax.tree.map(lambda a, i=i: a[i], tree) for i in range(num_runs)],
        take=jax.jit(lambda tree, run: jax.tree.map(lambda a: a[run], tree), out_shardings=shared_sharding),
        join=lambda trees: jax.device_put(stack([*map(jax.device_get, trees)]), sharding),
    )


def _describe(num_runs: int, plan: Plan) -> str:
    """The layout of runs in words.

    >>> _describe(32, Plan(1, 2, "why"))
    '32 runs in one program, 2 devices with 1 run at a time each: why'
    """
    devices = "1 device" if plan.devices == 1 else f"{plan.devices} devices"
    width = "1 run" if plan.block == 1 else f"{plan.block} runs"
    each = "" if plan.devices == 1 else " each"
    return f"{num_runs} runs in one program, {devices} with {width} at a time{each}: {plan.reason}"
