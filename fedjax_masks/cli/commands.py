"""The commands: each takes its parsed arguments, calls the package, and prints."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fedjax_masks.cli.flags import PARTITION_FLAGS, PRETRAIN_FLAGS, RUN_FLAGS, values_of
from fedjax_masks.cli.listing import KINDS, keys_of
from fedjax_masks.core.errors import UserError, check_replaceable, user_errors

_DEMO = {
    "data.partition": "shards:2",
    "data.clients": 50,
    "training.epochs": 5,
    "cohort": 10,
    "rounds": 30,
}
# In so few rounds FedAvg needs a higher rate than the default; local training gets the same.
_DEMO_ALGORITHMS = {"fedavg": {"algorithm.lr": 0.1}, "local": {"algorithm.lr": 0.1}, "fedmask": {}}


def demo(arguments: argparse.Namespace) -> None:
    """Runs the demo, and writes a report."""
    from fedjax_masks.analysis import load_run, print_table, write_report
    from fedjax_masks.experiment import config, experiment, run_directory

    out = Path(arguments.out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"out={arguments.out!r}: must be a new or an empty directory")
    configs = {
        out / name: config.make_config({**_DEMO, "algorithm.name": name, **options})
        for name, options in _DEMO_ALGORITHMS.items()
    }
    for directory, run_config in configs.items():
        run_directory.open_directory(directory, run_config, resume=False)
    for directory, run_config in configs.items():
        experiment.run_experiment(run_config, directory)
    print_table([load_run(directory) for directory in configs])
    write_report(list(configs), out / "report.html")
    print(f"report: {out / 'report.html'}")


def run(arguments: argparse.Namespace) -> None:
    """Runs one experiment, and prints a table."""
    from fedjax_masks.experiment import config, run_directory

    values = values_of(arguments, RUN_FLAGS)
    if arguments.resume and not values:
        values = run_directory.stored_values(Path(arguments.out))
    run_config = config.make_config(values)  # before jax is imported: a misspelt key is refused at once
    from fedjax_masks.analysis import load_run, print_table
    from fedjax_masks.experiment import experiment, hosts

    _join(arguments)
    with hosts.end_with_others():
        experiment.run_experiment(run_config, arguments.out, resume=arguments.resume, quiet=arguments.quiet)
    if not arguments.quiet and hosts.is_first():
        print_table([load_run(arguments.out)])


def _join(arguments: argparse.Namespace) -> None:
    """Joins the other processes of a run, if it has several."""
    from fedjax_masks.experiment import hosts

    if arguments.coordinator is not None:
        if arguments.join_timeout < 1:
            raise UserError(f"join-timeout={arguments.join_timeout}: must be at least 1, in seconds")
        hosts.join(
            arguments.coordinator,
            arguments.num_processes,
            arguments.process_id,
            timeout=arguments.join_timeout,
        )
    elif (arguments.num_processes, arguments.process_id) != (None, None):
        raise UserError("coordinator: must be given by --coordinator, with --num-processes and --process-id")


def sweep(arguments: argparse.Namespace) -> None:
    """Runs a sweep, and prints its table."""
    from fedjax_masks.experiment.sweep import run_sweep
    from fedjax_masks.experiment.sweep_table import print_sweep

    run_sweep(arguments.file, arguments.out, resume=arguments.resume, quiet=arguments.quiet)
    if not arguments.quiet:
        print_sweep(arguments.out)


def pretrain(arguments: argparse.Namespace) -> None:
    """Trains a model's first stages, and prints their names and accuracy."""
    from fedjax_masks.experiment import config

    values = {"algorithm.name": "fedavg", "pretraining.source": "fractal"}
    run_config = config.make_config(values | values_of(arguments, PRETRAIN_FLAGS))
    out = _output_file(arguments.out, [".npz"])
    from fedjax_masks.experiment import build, platforms
    from fedjax_masks.models import parameters

    platforms.check()
    with user_errors():
        initial = build.initial_params(run_config)
        if out is not None:
            parameters.write_npz(out, initial.params)
    accuracy = "" if initial.accuracy is None else f", accuracy on held-out images {initial.accuracy:.1%}"
    print(f"stages: {', '.join(initial.params) or 'none'}{accuracy}")


def partition(arguments: argparse.Namespace) -> None:
    """Prints, and draws, the division of a data set among clients."""
    from fedjax_masks.analysis.partition_table import partition_facts, print_partition, save_partition
    from fedjax_masks.experiment import build, config

    values = {"algorithm.name": "fedavg"} | values_of(arguments, PARTITION_FLAGS)
    out = _output_file(arguments.out, [".png", ".pdf", ".svg"])
    run_config = config.make_config(values)
    with user_errors():
        task = build.load(run_config)
        if out is not None:
            save_partition(task, run_config.data.seed, out)
    if arguments.json:
        print(json.dumps(partition_facts(task, run_config.data.seed)))
    else:
        print_partition(task, run_config.data.seed)


def _output_file(name: str | None, suffixes: Sequence[str]) -> Path | None:
    """The path of a file to write, checked; None without a name."""
    if name is None:
        return None
    path = Path(name)
    if not (path.suffix in suffixes and path.parent.is_dir()):
        endings = ", ".join(suffixes[:-1]) + " or " * (len(suffixes) > 1) + suffixes[-1]
        raise UserError(f"out={name!r}: must end in {endings}, in a folder that exists")
    check_replaceable(path)
    return path


def bench(arguments: argparse.Namespace) -> None:
    """Measures a workload, and prints the figures."""
    from fedjax_masks import benchmarks
    from fedjax_masks.simulation import parse_plan

    if arguments.config is not None and arguments.compile_for is None:
        raise UserError(f"config={arguments.config}: must be given with --compile-for")
    for name in ("workload", "plan"):
        value = getattr(arguments, name)
        if arguments.config is not None and value is not None:
            raise UserError(
                f"{name}={value}: must be left out with --config, whose file names the simulation"
            )
    workload, plan = arguments.workload or "femnist-cnn", arguments.plan or "auto"
    with user_errors():
        if arguments.compile_for is None:  # a plan for other devices than those at hand
            parse_plan(plan, cohort=1)
        figures = benchmarks.bench(
            workload,
            rounds=arguments.rounds,
            plan=plan,
            chip=arguments.compile_for,
            config=arguments.config,
        )
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        lines = value or ["none"] if isinstance(value, list) else [value]
        for title, line in zip((name, *[""] * len(lines)), lines):
            print(f"{title:24}{line}")


def report(arguments: argparse.Namespace) -> None:
    """Writes an HTML report on runs, and prints a table."""
    from fedjax_masks.analysis import load_runs, print_table, write_report

    options = {key: getattr(arguments, key) for key in ("target", "baseline", "tables", "setup_bytes")}
    with user_errors():
        write_report(arguments.runs, arguments.out, **options)
        print_table(load_runs(arguments.runs, setup_bytes=arguments.setup_bytes))


def compare(arguments: argparse.Namespace) -> None:
    """Prints a comparison of runs."""
    from fedjax_masks import analysis

    with user_errors():
        runs = analysis.load_runs(arguments.runs, setup_bytes=arguments.setup_bytes)
        series = analysis.group(runs)
        tables = analysis.compare(series, target=arguments.target, baseline=arguments.baseline)
        if arguments.tables is not None:
            analysis.write_tables(tables, series, arguments.tables)
    analysis.print_tables(tables)


def claims(arguments: argparse.Namespace) -> None:
    """Prints published figures beside measured ones."""
    from fedjax_masks.claims import all_claims, print_claims

    entries = all_claims()
    if not arguments.json:
        print_claims(entries)
        return
    print(json.dumps([claim.as_json() for claim in entries], indent=2))


def list_names(arguments: argparse.Namespace) -> None:
    """Prints lists of names."""
    parts = {"algorithm": arguments.algorithm, "model": arguments.model}
    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    if any(parts.values()):
        if kinds != ["keys"]:
            raise UserError("list: must be 'list keys' with --algorithm or --model, which choose keys")
        lists = {"keys": keys_of(**parts)}
    else:
        lists = {kind: KINDS[kind]() for kind in kinds}
    if arguments.json:
        print(json.dumps(lists, indent=2))
        return
    for kind, entries in lists.items():
        print(f"{kind}:" if entries else f"{kind}: none")
        width = max(map(len, entries), default=0)
        for name, text in entries.items():
            print(f"  {name:{width}}  {text}")
