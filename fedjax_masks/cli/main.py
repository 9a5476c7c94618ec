"""The command line: ``fedjax-masks``.

Thin: it turns arguments into a configuration, calls the package, and prints. A user's error ends
with exit code 2 and one line on stderr.
"""

import argparse
import codecs
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from fedjax_masks import __version__
from fedjax_masks.cli.listing import KINDS, keys_of
from fedjax_masks.core.errors import UserError, check_replaceable, user_errors
from fedjax_masks.core.synonyms import meant_key, synonym
from fedjax_masks.experiment import signals

_FLAGS = {
    "algorithm": ("algorithm.name", "NAME", "the algorithm, required; see 'fedjax-masks list algorithms'"),
    "dataset": ("data.name", "NAME", "the data set (default: digits)"),
    "data-dir": ("data.dir", "DIR", "where prepared tensorflow-datasets lie"),
    "model": ("model.name", "NAME", "the model (default: one that suits the data set)"),
    "partition": ("data.partition", "SPEC", "how data are divided (default: iid)"),
    "clients": ("data.clients", "N", "number of clients (default: 100)"),
    "cohort": ("cohort", "K", "clients per round (default: 10, or all where there are fewer)"),
    "rounds": ("rounds", "R", "rounds (default: 50)"),
    "epochs": ("training.epochs", "E", "local epochs (default: by algorithm)"),
    "lr": ("algorithm.lr", "RATE", "the clients' learning rate (default: by algorithm)"),
    "batch-size": ("training.batch_size", "B", "examples per local step (default: 10)"),
    "devices": ("devices", "SPEC", "devices and links, as in rpi4@wifi or rpi3+rpi4@4g,deadline=60"),
    "log": ("log", "NAMES", "records also go to tensorboard, wandb, mlflow; joined by +"),
    "seed": ("seed", "S", "decides everything random but the partition (default: 0)"),
    "eval-every": ("eval_every", "R", "rounds between two evaluations (default: R/20)"),
}
_PRETRAIN_FLAGS = {
    **{flag: _FLAGS[flag] for flag in ("dataset", "data-dir", "model", "partition", "clients")},
    "source": (
        "pretraining.source",
        "SOURCE",
        "fractal (default), public, {npz,safetensors}:FILE, or orbax:DIR",
    ),
    "epochs": ("pretraining.epochs", "E", "passes over the source's images (default: 20)"),
    "lr": ("pretraining.lr", "RATE", "learning rate (default: 0.01)"),
    "seed": ("pretraining.seed", "S", "of fractals, parameters and the order of examples (default: 0)"),
}
_PARTITION_FLAGS = {
    **{flag: _FLAGS[flag] for flag in ("dataset", "data-dir", "partition", "clients")},
    "seed": ("data.seed", "S", "the partition's seed (default: 0)"),
}
_DESCRIPTION = "Simulates communication- and compute-efficient federated learning."
_DEMO = {
    "data.partition": "shards:2",
    "data.clients": 50,
    "training.epochs": 5,
    "cohort": 10,
    "rounds": 30,
}
# In so few rounds FedAvg needs a higher rate than the default; local training gets the same.
_DEMO_ALGORITHMS = {"fedavg": {"algorithm.lr": 0.1}, "local": {"algorithm.lr": 0.1}, "fedmask": {}}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}{'' if message.endswith('?') else ';'} see '{self.prog} --help'")


class _Command(_Parser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses flags that do not exist before argparse asks for those that are missing."""
        for argument in args or ():
            flag = argument.partition("=")[0]
            if flag == "--":
                break
            if flag.startswith("--") and flag not in self._option_string_actions:
                self.error(f"{flag}: unknown flag" + self._hint(flag))
        known, others = super().parse_known_args(args, namespace)
        for word in others:
            near = _with_flag(word)
            if near is not None and near[0] in self._option_string_actions:
                self.error(f"{word}: unknown argument; did you mean {' '.join(near)}?")
        return known, others

    def _hint(self, flag: str) -> str:
        """The flag or the key that was probably meant."""
        flags = self._option_string_actions
        near = get_close_matches(flag, flags, n=1, cutoff=0.8)
        if "--set" in flags and not near:
            from fedjax_masks.experiment import config

            keys = config.all_keys()
            key = synonym(flag, keys) or meant_key(flag[2:].replace("-", "_"), keys) or ""
            own = f"--{key.rpartition('.')[2].replace('_', '-')}"
            near = [other for other, action in flags.items() if action.dest == key or other == own]
            if key and not near:
                names = config.owners(key)
                of = f" of {' and '.join(names)}" if names else ""
                return f"; it is no flag but a key{of}: --set {key}=VALUE"
        near = near or get_close_matches(flag, flags, n=1)
        others = "; keys without a flag: --set KEY=VALUE" * ("--set" in flags)
        return f"; did you mean {near[0]}?" if near else others


def _with_flag(word: str) -> tuple[str, str] | None:
    """The flag to which a word belongs and what it should be, where it names something that there is."""
    kinds = {"algorithms": "--algorithm", "datasets": "--dataset", "models": "--model"}
    named = ((flag, synonym(word, KINDS[kind]())) for kind, flag in kinds.items())
    return next(((flag, name) for flag, name in named if name is not None), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    _split_host()
    _write_anywhere()
    try:
        arguments = _parser().parse_args(argv)
        with signals.second_signal_ends():
            arguments.command(arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # what a path of the command line leads to
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {where}must be accessible; {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; 'run' and 'sweep' continue with --resume", file=sys.stderr)
        return 130
    return 0


_PLAIN = {"±": "+-", "·": "*", "÷": "/", "\u00d7": "x", "\u2013": "-", "\u2212": "-", "≤": "<=", "≥": ">="}


def _write_anywhere() -> None:
    """Makes streams of any encoding write what they lack, in plain letters or as an escape sequence."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        missing = error.object[error.start : error.end]
        letters = (_PLAIN.get(a) or a.encode("ascii", "backslashreplace").decode() for a in missing)
        return "".join(letters), error.end

    codecs.register_error("fedjax_masks.plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fedjax_masks.plain")


def _split_host() -> None:
    """Makes the CPU show up as several devices, unless the user has said how many.

    One client's step is too short to split inside, so clients are spread over devices.
    Has an effect only before jax has started.
    """
    flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={min(os.cpu_count() or 1, 4)}".strip()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fedjax-masks", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)

    def add(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(command=function)
        return command

    demo = add("demo", _demo, "compare FedAvg, Local and FedMask on digits with two classes per client")
    demo.add_argument("--out", metavar="DIR", default="fedjax-masks-demo", help="default: %(default)s")

    run = add("run", _run, "run one experiment; of the same key, --set beats flags, and flags the file")
    _add_keys(run, _FLAGS)
    run.add_argument("--out", metavar="DIR", required=True, help="the run directory")
    run.add_argument("--resume", action="store_true", help="continue the run in --out")
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of several processes, or 'auto' on a cluster"
    )
    run.add_argument("--num-processes", metavar="N", type=int, help="how many processes run this together")
    run.add_argument("--process-id", metavar="I", type=int, help="which of them this is, from 0")
    run.add_argument(
        "--join-timeout",
        metavar="S",
        type=int,
        default=300,
        help="seconds to wait for them (default: 300)",
    )

    pretraining = add("pretrain", _pretrain, "train a model's first stages before any client does")
    _add_keys(pretraining, _PRETRAIN_FLAGS)
    pretraining.add_argument("--out", metavar="FILE.npz", help="also write the parameters to a file")

    partition = add("partition", _partition, "show who gets which data, without training")
    _add_keys(partition, _PARTITION_FLAGS)
    partition.add_argument("--out", metavar="FILE", help="also draw it: .png, .pdf or .svg")
    partition.add_argument("--json", action="store_true", help="print one JSON object, with all clients")

    sweep = add("sweep", _sweep, "run a grid of experiments; seeds and rates in one compiled program")
    sweep.add_argument("file", metavar="FILE.toml", help="a configuration with a [grid] or [[runs]]")
    sweep.add_argument("--out", metavar="DIR", required=True, help="the sweep's directory")
    sweep.add_argument("--resume", action="store_true", help="skip what has finished in --out")
    sweep.add_argument("--quiet", action="store_true", help="no plan, no progress, no table")

    bench = add("bench", _bench, "measure the engine's speed")
    bench.add_argument("--workload", metavar="NAME", default="femnist-cnn", help="default: %(default)s")
    bench.add_argument("--rounds", metavar="R", type=int, default=20, help="default: %(default)s")
    bench.add_argument("--plan", default="auto", help="the execution plan (default: %(default)s)")
    bench.add_argument("--json", action="store_true", help="print one JSON object")

    report = add("report", _report, "compare runs in one HTML file")
    _add_comparison(report)
    report.add_argument("--out", metavar="FILE.html", required=True, help="the file to write")

    _add_comparison(add("compare", _compare, "compare runs in the terminal"))

    claims = add("claims", _claims, "published figures beside ours")
    claims.add_argument("--json", action="store_true", help="print one JSON list")

    listing = add("list", _list, "list what there is")
    listing.add_argument("kind", nargs="?", choices=tuple(KINDS), help="default: all")
    listing.add_argument("--algorithm", metavar="NAME", help="with keys: those of this algorithm alone")
    listing.add_argument("--model", metavar="NAME", help="with keys: those of this model alone")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_keys(command: argparse.ArgumentParser, flags: Mapping[str, tuple[str, str, str]]) -> None:
    command.add_argument("--config", metavar="FILE.toml", help="a TOML file with the configuration's keys")
    for flag, (key, metavar, text) in flags.items():
        command.add_argument(f"--{flag}", dest=key, metavar=metavar, help=text)
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key, see 'fedjax-masks list keys'; repeatable",
    )


def _add_comparison(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", metavar="RUN", nargs="+", help="a run directory, or a directory of such")
    command.add_argument(
        "--target",
        metavar="ACCURACY",
        type=float,
        help="the accuracy, from 0 to 1, whose cost is compared (default: 95 %% of what half of them reach)",
    )
    command.add_argument(
        "--baseline", metavar="NAME", help="what to test against: an algorithm, or best (default: fedavg)"
    )
    command.add_argument("--tables", metavar="DIR", help="also write all tables as CSV and LaTeX")
    command.add_argument(
        "--setup-bytes", action="store_true", help="count what every device gets before the first round"
    )


def _values(arguments: argparse.Namespace, flags: Mapping[str, tuple[str, str, str]]) -> dict[str, Any]:
    from fedjax_masks.algorithms import registry
    from fedjax_masks.experiment import config

    values = {} if arguments.config is None else config.read_file(arguments.config)
    flagged = {key: getattr(arguments, key) for key, _, _ in flags.values()}
    given = {key: value for key, value in flagged.items() if value is not None}
    assigned = dict(map(_assignment, arguments.set))
    name = {**values, **given, **assigned}.get("algorithm.name")
    if name is not None and "algorithm.lr" in given:
        registry.check_rate(str(name), given["algorithm.lr"])
    return values | given | assigned


def _pretrain(arguments: argparse.Namespace) -> None:
    from fedjax_masks.experiment import build, config, platforms
    from fedjax_masks.models import parameters

    values = {"algorithm.name": "fedavg", "pretraining.source": "fractal"}
    chosen = config.make_config(values | _values(arguments, _PRETRAIN_FLAGS))
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None and not (out.suffix == ".npz" and out.parent.is_dir()):
        raise UserError(
            f"out={arguments.out!r}: a file that ends in .npz is accepted, in a folder that exists"
        )
    if out is not None:
        check_replaceable(out)
    platforms.check()
    with user_errors():
        found = build.pretrained(chosen)
        if out is not None:
            parameters.write_npz(out, found.params)
    accuracy = "" if found.accuracy is None else f", accuracy on held-out images {found.accuracy:.1%}"
    print(f"stages: {', '.join(found.params) or 'none'}{accuracy}")


def _run(arguments: argparse.Namespace) -> None:
    from fedjax_masks.analysis import load_run, print_table
    from fedjax_masks.experiment import config, experiment, hosts, run_directory

    values = _values(arguments, _FLAGS)
    if arguments.resume and not values:
        values = run_directory.stored_values(Path(arguments.out))
    chosen = config.make_config(values)
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
        raise UserError("coordinator: missing; --num-processes and --process-id need --coordinator as well")
    with hosts.together():
        experiment.run_experiment(chosen, arguments.out, resume=arguments.resume, quiet=arguments.quiet)
    if not arguments.quiet and hosts.first():
        print_table([load_run(arguments.out)])


def _partition(arguments: argparse.Namespace) -> None:
    from fedjax_masks.analysis.partition_table import partition_facts, print_partition, save_partition
    from fedjax_masks.experiment import build, config

    values = {"algorithm.name": "fedavg"} | _values(arguments, _PARTITION_FLAGS)
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None and not (out.suffix in (".png", ".pdf", ".svg") and out.parent.is_dir()):
        raise UserError(f"out={arguments.out!r}: must end in .png, .pdf or .svg, in a folder that exists")
    if out is not None:
        check_replaceable(out)
    chosen = config.make_config(values)
    with user_errors():
        task = build.load(chosen)
        if out is not None:
            save_partition(task, chosen.data.seed, out)
    if arguments.json:
        print(json.dumps(partition_facts(task, chosen.data.seed)))
    else:
        print_partition(task, chosen.data.seed)


def _sweep(arguments: argparse.Namespace) -> None:
    from fedjax_masks.experiment.sweep import print_sweep, run_sweep

    run_sweep(arguments.file, arguments.out, resume=arguments.resume, quiet=arguments.quiet)
    if not arguments.quiet:
        print_sweep(arguments.out)


def _assignment(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--set {text}: KEY=VALUE is accepted")
    return key.strip(), value.strip()


def _demo(arguments: argparse.Namespace) -> None:
    from fedjax_masks.analysis import load_run, print_table, write_report
    from fedjax_masks.experiment import config, experiment, run_directory

    out = Path(arguments.out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"out={arguments.out!r}: is not empty; a new or an empty directory is accepted")
    runs = {
        out / name: config.make_config({**_DEMO, "algorithm.name": name, **options})
        for name, options in _DEMO_ALGORITHMS.items()
    }
    for directory, chosen in runs.items():
        run_directory.open_directory(directory, chosen, resume=False)
    for directory, chosen in runs.items():
        experiment.run_experiment(chosen, directory)
    print_table([load_run(directory) for directory in runs])
    write_report(list(runs), out / "report.html")
    print(f"report: {out / 'report.html'}")


def _bench(arguments: argparse.Namespace) -> None:
    from fedjax_masks.benchmarks import bench
    from fedjax_masks.simulation import parse_plan

    with user_errors():
        parse_plan(arguments.plan, cohort=1)
    figures = bench(arguments.workload, rounds=arguments.rounds, plan=arguments.plan)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24}{value}")


def _report(arguments: argparse.Namespace) -> None:
    from fedjax_masks.analysis import load_runs, print_table, write_report

    asked = {key: getattr(arguments, key) for key in ("target", "baseline", "tables", "setup_bytes")}
    with user_errors():
        write_report(arguments.runs, arguments.out, **asked)
        print_table(load_runs(arguments.runs, setup_bytes=arguments.setup_bytes))


def _compare(arguments: argparse.Namespace) -> None:
    from fedjax_masks.analysis import compare, group, load_runs, print_tables, write_tables

    with user_errors():
        series = group(load_runs(arguments.runs, setup_bytes=arguments.setup_bytes))
        tables = compare(series, target=arguments.target, baseline=arguments.baseline)
        if arguments.tables is not None:
            write_tables(tables, series, arguments.tables)
    print_tables(tables)


def _claims(arguments: argparse.Namespace) -> None:
    from fedjax_masks.claims import all_claims, print_claims

    claims = all_claims()
    if not arguments.json:
        print_claims(claims)
        return
    print(json.dumps([claim.as_json() for claim in claims], indent=2))


def _list(arguments: argparse.Namespace) -> None:
    parts = {"algorithm": arguments.algorithm, "model": arguments.model}
    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    if any(parts.values()):
        if kinds != ["keys"]:
            raise UserError("list: --algorithm and --model choose keys; accepted is 'list keys'")
        found = {"keys": keys_of(**parts)}
    else:
        found = {kind: KINDS[kind]() for kind in kinds}
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for kind, entries in found.items():
        print(f"{kind}:" if entries else f"{kind}: none")
        width = max(map(len, entries), default=0)
        for name, text in entries.items():
            print(f"  {name:{width}}  {text}")


if __name__ == "__main__":
    sys.exit(main())
