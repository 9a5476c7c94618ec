"""Estimates of compiled programs: by hand, and of simulations on chips that are not there."""

import importlib.util
import json

import cases
import jax
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.aot.compilation import compile_for, parts_of
from fedjax_masks.cli import main
from fedjax_masks.core import target
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.participation import Schedule
from fedjax_masks.data import synthetic_task
from fedjax_masks.programs.chips import CHIPS, chip_named, chip_of
from fedjax_masks.programs.estimate import Costs, estimate
from fedjax_masks.programs.hlo import parse, turns
from fedjax_masks.programs.products import Product, products
from fedjax_masks.programs.traffic import num_bytes
from fedjax_masks.simulation.blocks import compile_fast, faster_plan
from fedjax_masks.simulation.chunks import lower_chunk
from fedjax_masks.simulation.evaluate import lower_evaluation
from fedjax_masks.simulation.plan import Plan, parse_plan
from fedjax_masks.simulation.runs import lay_out_runs

H200 = CHIPS["h200"]

# A loop of three turns around a product, a fusion that reads a slice and updates another array in place, and
# a branch of which one side computes.
PROGRAM = """
%sliced (p0: f32[100,8], p1: s32[], p2: f32[50,8]) -> f32[50,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[50,8]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
  ROOT %update = f32[50,8]{1,0} dynamic-update-slice(%p2, %row, %p1, %zero)
}

%first (a: f32[4,8]) -> f32[4,8] {
  ROOT %a = f32[4,8]{1,0} parameter(0)
}

%second (b: f32[4,8]) -> f32[4,8] {
  %b = f32[4,8]{1,0} parameter(0)
  ROOT %tanh = f32[4,8]{1,0} tanh(%b)
}

%condition (c: (s32[], f32[4,8])) -> pred[] {
  %c = (s32[], f32[4,8]{1,0}) parameter(0)
  %bound = s32[] constant(3)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (d: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %d = (s32[], f32[4,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%d), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%d), index=1
  %w = f32[8,8]{1,0} constant({...})
  %dot = f32[4,8]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, PRECISION
  ROOT %tuple = (s32[], f32[4,8]{1,0}) tuple(%j, %dot)
}

ENTRY %main (table: f32[100,8], n: s32[], x: f32[4,8], out: f32[50,8]) -> (f32[50,8], f32[4,8]) {
  %table = f32[100,8]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %x.1 = f32[4,8]{1,0} parameter(2)
  %out = f32[50,8]{1,0} parameter(3)
  %start = (s32[], f32[4,8]{1,0}) tuple(%n, %x.1)
  %while.1 = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body, backend_config={LOOP}
  %y = f32[4,8]{1,0} get-tuple-element(%while.1), index=1
  %z = f32[4,8]{1,0} conditional(%n, %y, %y), branch_computations={%first, %second}
  %fusion = f32[50,8]{1,0} fusion(%table, %n, %out), kind=kLoop, calls=%sliced, metadata={op_name="a=b, c"}
  ROOT %result = (f32[50,8]{1,0}, f32[4,8]{1,0}) tuple(%fusion, %z)
}
"""


PROGRAM = PROGRAM.replace("PRECISION", "operand_precision={highest,highest}")


def program(loop='{"known_trip_count":{"n":"3"}}'):
    return parse(PROGRAM.replace("{LOOP}", loop))


def test_instructions_of_a_program():
    module = program()
    fusion = module.entry.instructions["fusion"]
    assert list(module.computations) == ["sliced", "first", "second", "condition", "body", "main"]
    assert fusion.operands == ("table", "n", "out")
    assert fusion.attribute("kind") == "kLoop"
    assert fusion.num_bytes == 4 * 50 * 8
    assert module.entry.root.num_bytes == 4 * (50 + 4) * 8
    assert module.entry.instructions["while.1"].backend == {"known_trip_count": {"n": "3"}}


@pytest.mark.parametrize("loop", ['{"known_trip_count":{"n":"3"}}', "{}"])
def test_turns_of_a_loop(loop):
    module = program(loop)
    assert turns(module, module.entry.instructions["while.1"]) == 3


def test_a_bound_that_the_data_decide():
    module = parse(PROGRAM.replace("{LOOP}", "{}").replace("compare(%i, %bound)", "compare(%i, %i)"))
    assert turns(module, module.entry.instructions["while.1"]) is None
    guess = estimate(module, H200, trips=7)
    assert guess.host_loops == 1
    assert guess.costs.turns == 7
    assert guess.products[Product("product", 1, 4, 8, 8, "highest")] == 7


def test_slices_and_updates_in_place_move_what_they_touch():
    module = program()
    # A row of the table is read and written, and the index is read.
    assert num_bytes(module, module.entry, module.entry.instructions["fusion"]) == 4 * (8 + 8 + 1)


def test_costs_add_up_over_loops_and_branches():
    module = program()
    most, least = (estimate(module, H200, trips=1, branch=branch).costs for branch in (max, min))
    # The product in three turns, the tanh and the fusion; tuples and constants launch nothing.
    assert (most.kernels, least.kernels) == (5, 4)
    assert most.flops == 3 * 2 * 4 * 8 * 8
    assert most.bytes - least.bytes == 2 * 4 * 4 * 8
    assert most.seconds == pytest.approx(5 * H200.launch)
    assert most.bound == "launches"
    (added,) = estimate(module, H200, trips=1).branches.values()
    assert added == pytest.approx(most.seconds - least.seconds)


def test_the_slowest_of_three_bounds_a_kernel():
    big = PROGRAM.replace("[8,8]", "[8,100000000]").replace("%dot = f32[4,8]", "%dot = f32[4,100000000]")
    costs = estimate(parse(big.replace("{LOOP}", "{}")), H200, trips=1).costs
    assert costs.bound == "memory"
    assert costs.traffic_s == pytest.approx(3 * 4 * (8e8 + 4e8 + 32) / H200.bandwidth)


@pytest.mark.parametrize(
    ("attributes", "shapes", "expected"),
    [
        # As the definition counts: 5 places of 3 taps, of which padding takes one at either end.
        ("window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", ("2,5,4", "3,4,6", "2,5,6"), 2 * 2 * 6 * 4 * 13),
        ("window={size=3}, dim_labels=b0f_0io->b0f", ("2,5,4", "3,4,6", "2,3,6"), 2 * 2 * 6 * 4 * 9),
        (
            "window={size=3}, dim_labels=b0f_0io->b0f, feature_group_count=2",
            ("2,5,8", "3,4,6", "2,3,6"),
            2 * 2 * 6 * 4 * 9,
        ),
        # Five products of 2 x 4 x 6 as one convolution, of whose taps each place meets one.
        (
            "window={size=5 stride=4 pad=4_4 lhs_dilate=5}, dim_labels=0bf_0io->0bf",
            ("5,2,4", "5,4,6", "5,2,6"),
            2 * 5 * 2 * 4 * 6,
        ),
    ],
)
def test_flops_of_convolutions(attributes, shapes, expected):
    image, kernel, result = shapes
    text = f"""ENTRY %main (x: f32[{image}], k: f32[{kernel}]) -> f32[{result}] {{
  %x = f32[{image}]{{2,1,0}} parameter(0)
  %k = f32[{kernel}]{{2,1,0}} parameter(1)
  ROOT %c = f32[{result}]{{2,1,0}} convolution(%x, %k), {attributes}
}}"""
    module = parse(text)
    (found,) = products(module, module.entry, module.entry.root)
    assert found.flops == pytest.approx(expected)
    assert found.precision == "default"


def test_products_of_a_library():
    numbers = {"lhs_contracting_dimensions": ["2"], "lhs_batch_dimensions": ["0"]}
    precision = {"operand_precision": ["HIGHEST", "HIGHEST"]}
    config = {"gemm_backend_config": {"dot_dimension_numbers": numbers, "precision_config": precision}}
    text = """ENTRY %main (x: f32[5,4,8], k: f32[5,8,6]) -> f32[5,4,6] {
  %x = f32[5,4,8]{2,1,0} parameter(0)
  %k = f32[5,8,6]{2,1,0} parameter(1)
  ROOT %c = f32[5,4,6]{2,1,0} custom-call(%x, %k), custom_call_target="__cublas$gemm", CONFIG
}"""
    module = parse(text.replace("CONFIG", f"backend_config={json.dumps(config)}"))
    assert list(products(module, module.entry, module.entry.root)) == [
        Product("product", 5, 4, 6, 8, "highest")
    ]


def test_costs_of_several_turns():
    one = Costs(kernels=2, bytes=3, launch_s=1e-6)
    assert one.plus(one) == one.times(2)


class Program:
    """A compiled program, of which only the text is known."""

    def __init__(self, text):
        self.text = text

    def as_text(self):
        return self.text

    def memory_analysis(self):
        return None


def parts_for(size, num_tiers=1):
    """The parts for ten clients, of which one has 100 examples and the others ``size``."""
    task = synthetic_task((6,), 3, np.array([100, *[size] * 9]))
    algorithm = fm.fedavg(fm.models.mlp(task, hidden=(4,)), optax.sgd(0.1))
    if num_tiers > 1:
        schedule = Schedule(num_tiers=num_tiers, tier_of=lambda ids: ids % num_tiers)
        algorithm = algorithm._replace(schedule=schedule)
    return parts_of(algorithm, task, cohort=10, rounds=2, devices=1)


def test_kinds_of_devices():
    assert chip_of("gpu", "NVIDIA A100-SXM4-80GB") == CHIPS["a100"]
    assert chip_of("tpu", "TPU v5 lite") == CHIPS["tpu-v5e"]
    assert chip_of("METAL", "Apple M3") is None


# Rounds around steps, of which the data decide the numbers.
ENDLESS = PROGRAM.replace("{LOOP}", "{}").replace("compare(%i, %bound)", "compare(%i, %i)")
ROUNDS = f"""{ENDLESS.partition("ENTRY")[0]}
%round (e: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {{
  %e = (s32[], f32[4,8]{{1,0}}) parameter(0)
  ROOT %steps = (s32[], f32[4,8]{{1,0}}) while(%e), condition=%condition, body=%body
}}

ENTRY %main (n: s32[], x: f32[4,8]) -> (s32[], f32[4,8]) {{
  %n = s32[] parameter(0)
  %x = f32[4,8]{{1,0}} parameter(1)
  %start = (s32[], f32[4,8]{{1,0}}) tuple(%n, %x)
  ROOT %rounds = (s32[], f32[4,8]{{1,0}}) while(%start), condition=%condition, body=%round
}}
"""
MEMORY = ROUNDS.replace("[8,8]", "[8,100000000]").replace("%dot = f32[4,8]", "%dot = f32[4,100000000]")


def test_loops_in_loops():
    one, two = (estimate(parse(ROUNDS), H200, trips=trips, outer_trips=1).costs for trips in (1, 2))
    assert (one.turns, two.turns) == (2, 3)
    assert estimate(parse(ROUNDS), H200, trips=2).costs.turns == 2 * (2 + 1)
    whole, half = (estimate(parse(MEMORY), H200, trips=1, share=share).costs.traffic_s for share in (1, 0.5))
    assert half == pytest.approx(whole / 2)


@pytest.mark.parametrize(
    ("size", "text", "num_tiers", "block"),
    [
        (1, ROUNDS, 1, 10),  # one block has the fewest steps
        (1, MEMORY, 1, 2),  # blocks of two have few places for examples, and half the launches of one client
        (100, MEMORY, 1, 10),  # no padding
        (100, MEMORY, 5, 2),  # two clients of each tier
    ],
)
def test_blocks_hold_clients_of_like_size_where_that_is_faster(size, text, num_tiers, block):
    plan = faster_plan(Program(text), Plan(10, is_free=True), parts_for(size, num_tiers), H200)
    if block == 10:
        assert plan is None
    else:
        assert plan.block == block
        assert "of the time of 10" in plan.reason


def compiled_by(compile_plan, is_free=True):
    with target.making_for(target.Target("gpu", memory=1)):
        return compile_fast(compile_plan, Plan(10, is_free=is_free), parts_for(1), H200)


def test_the_faster_of_two_programs_is_kept():
    whole, small, slow = (Program(MEMORY.replace("1000", number)) for number in ("1000", "500", "9000"))
    assert compiled_by(lambda plan: small if plan.block == 2 else whole)[0] is small
    assert compiled_by(lambda plan: slow if plan.block == 2 else whole)[0] is whole
    assert compiled_by(lambda plan: small if plan.block == 2 else whole, is_free=False)[0] is whole


def test_a_failure_of_smaller_blocks_costs_speed_alone():
    def only_whole(plan):
        if plan.block < 10:
            raise jax.errors.JaxRuntimeError("INTERNAL: a fault of the compiler")
        return Program(MEMORY)

    with pytest.warns(UserWarning, match="smaller blocks are not tried"):
        assert compiled_by(only_whole)[1].block == 10


def test_programs_for_other_devices():
    with target.making_for(target.Target("gpu")):
        assert parse_plan("auto,mesh:1", cohort=5).block == 5
    assert parse_plan("auto,mesh:1", cohort=5).block == 1


@pytest.mark.parametrize("name", ["fedavg", "ecofed", "fedskel", "adp"])
def test_all_products_are_exact(name):
    kind = cases.kind_of(name)
    parts = parts_of(cases.algorithm(name), cases.task_for(kind), cohort=cases.COHORT, rounds=2, devices=1)
    plan, layout = lay_out_runs("vmap", cohort=cases.COHORT, num_runs=1)
    lowered = [lower_chunk(parts, layout(plan)), *lower_evaluation(parts, layout(plan), 3).values()]
    for program in lowered:
        dots = [line for line in program.as_text().splitlines() if "dot_general" in line]
        assert dots
        assert all("HIGHEST" in line for line in dots)


def test_no_such_chip():
    with pytest.raises(UserError, match=r"compile-for='h2000': must be one of .*; did you mean 'h200'\?"):
        chip_named("h2000")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the compiler is installed")
def test_a_compiler_that_is_not_installed(capsys):
    assert main.main(["bench", "--compile-for", "tpu-v5e"]) == 2
    assert "must have the compiler libtpu, which is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "run.toml"], "config=run.toml: must be given with --compile-for"),
        (["--compile-for", "gpu"], "compile-for='gpu': must be one of"),
        (["--compile-for", "h200", "--config", "run.toml", "--plan", "scan"], "plan=scan: must be left out"),
        (
            ["--compile-for", "h200", "--workload", "fedmask-compact"],
            "workload='fedmask-compact': must be one of",
        ),
    ],
)
def test_wrong_commands(arguments, message, capsys):
    assert main.main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# Below: with the compilers, `pip install 'fedjax_masks[aot]'`; .ci/run has an environment for them.

# Trainings on the longest way through a program, where FedAvg's has a single one: by epochs, tiers, kinds of
# rounds, and gradients of a step. A step of each may take twice the kernels of FedAvg's step.
TRAININGS = {
    "perfedavg": 2,  # two gradients of a step
    "heterofl": 2,  # two tiers
    "fedskel": 4,  # two tiers, and two kinds of rounds
    "fedskel-cycle": 4,
    "mpfl": 2,  # epochs
    "fedpm": 3,  # epochs
    "lotteryfl": 3,  # two epochs, and two validations
    "feddst": 3,  # training, regrowth
    "fedmask": 3,  # two epochs, and one before the first
    "fedmask-own": 2,
    "fedmask-entropy": 2,
}


@pytest.fixture(scope="module")
def compiled():
    """Each case, compiled for a chip once."""
    made = {}

    def of(name, chip="h200"):
        if (name, chip) not in made:
            kind = cases.kind_of(name, "cnn")
            algorithm, task = cases.algorithm(name, kind), cases.task_for(kind)
            made[name, chip] = compile_for(chip, algorithm, task, cohort=cases.COHORT, batch_size=4)
        return made[name, chip]

    return of


def instructions(compilation):
    return [i for c in compilation.module.computations.values() for i in c.instructions.values()]


QUICK = {"fedavg", "fedmask", "fedskel", "mpfl", "heterofl", "fedpm", "feddst"}


@pytest.mark.aot
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in cases.CASES]
)
def test_every_case_compiles_for_a_gpu_into_few_kernels(name, compiled):
    case, fedavg = compiled(name), compiled("fedavg")
    kernels = case.most.costs.kernels / case.rounds
    assert kernels <= 2 * TRAININGS.get(name, 1) * fedavg.most.costs.kernels / fedavg.rounds
    assert case.most.costs.seconds >= case.least.costs.seconds > 0
    assert case.plan.block == cases.COHORT
    assert not any(product.kind == "convolution" for product in case.most.products)
    for instruction in instructions(case):
        assert instruction.opcode not in ("infeed", "outfeed", "send", "recv")
        assert "callback" not in (instruction.attribute("custom_call_target") or "")
        assert not any(array.dtype == "f64" for array in instruction.arrays)


@pytest.mark.aot
@pytest.mark.slow  # minutes; and the compiler for TPUs ends a process that pytest-xdist has started
@pytest.mark.parametrize("name", ["fedavg", "fedskel"])
def test_cases_compile_for_a_tpu(name, compiled):
    case = compiled(name, "tpu-v5e")
    assert 0 < case.memory_bytes < case.chip.memory
    assert case.most.costs.seconds > 0


@pytest.mark.aot
def test_clients_of_different_sizes_run_in_smaller_blocks():
    task = synthetic_task((28, 28, 1), 10, np.array([200, 60, 50, *[10] * 9]))
    algorithm = fm.fedavg(fm.models.lenet(task), optax.sgd(0.1), batch_size=10)
    chosen, whole = (
        compile_for("t4", algorithm, task, cohort=12, plan=plan, rounds=2, batch_size=10)
        for plan in ("auto", "vmap")
    )
    assert chosen.plan.block < 12
    assert "clients differ in size" in chosen.plan.reason
    assert chosen.most.costs.seconds < 0.9 * whole.most.costs.seconds


@pytest.mark.aot
def test_figures_of_a_configuration(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text(
        'rounds = 2\n[algorithm]\nname = "fedavg"\n[data]\nname = "digits"\nclients = 10\n', "utf-8"
    )
    assert main.main(["bench", "--compile-for", "h200", "--config", str(file), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["chip"] == "NVIDIA H200"
    assert figures["kernels"] > 0
    assert figures["round_ms"] == pytest.approx(
        figures["launch_ms"] + figures["memory_ms"] + figures["products_ms"], abs=2e-3
    )
