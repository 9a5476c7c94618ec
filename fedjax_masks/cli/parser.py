"""The parser of the command line, whose errors are :class:`~fedjax_masks.core.errors.UserError`."""

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from fedjax_masks import __version__
from fedjax_masks.cli import commands
from fedjax_masks.cli.flags import PARTITION_FLAGS, PRETRAIN_FLAGS, RUN_FLAGS, add_flags
from fedjax_masks.cli.listing import KINDS
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.synonyms import nearest_key, synonym

_DESCRIPTION = "Simulates communication- and compute-efficient federated learning."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}{'' if message.endswith('?') else ';'} see '{self.prog} --help'")


class _Command(_Parser):
    # The method of the standard library has overloads.
    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuses flags that do not exist before argparse reports missing ones."""
        for argument in args or ():
            flag = argument.partition("=")[0]
            if flag == "--":
                break
            if flag.startswith("--") and flag not in self._option_string_actions:
                self.error(f"{flag}: unknown flag" + self._hint(flag))
        arguments, others = super().parse_known_args(args, namespace)
        for word in others:
            match = _with_flag(word)
            if match is not None and match[0] in self._option_string_actions:
                self.error(f"{word}: unknown argument; did you mean {' '.join(match)}?")
        return arguments, others

    def _hint(self, flag: str) -> str:
        """The flag or the key that was probably meant."""
        flags = self._option_string_actions
        matches: Sequence[str] = get_close_matches(flag, flags, n=1, cutoff=0.8)
        if "--set" in flags and not matches:
            from fedjax_masks.experiment import config

            keys = config.all_keys()
            key = synonym(flag, keys) or nearest_key(flag[2:].replace("-", "_"), keys) or ""
            key_flag = f"--{key.rpartition('.')[2].replace('_', '-')}"
            matches = [other for other, action in flags.items() if action.dest == key or other == key_flag]
            if key and not matches:
                names = config.owners(key)
                owners = f" of {' and '.join(names)}" if names else ""
                return f"; it is no flag but a key{owners}: --set {key}=VALUE"
        matches = matches or get_close_matches(flag, flags, n=1)
        hint = "; keys without a flag: --set KEY=VALUE" * ("--set" in flags)
        return f"; did you mean {matches[0]}?" if matches else hint


def _with_flag(word: str) -> tuple[str, str] | None:
    """The flag and the value that a word without a flag probably stands for."""
    kinds = {"algorithms": "--algorithm", "datasets": "--dataset", "models": "--model"}
    matches = ((flag, synonym(word, KINDS[kind]())) for kind, flag in kinds.items())
    return next(((flag, name) for flag, name in matches if name is not None), None)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line; parsed arguments have a function ``command``, which takes them."""
    parser = _Parser(prog="fedjax-masks", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)

    def add(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(command=function)
        return command

    demo = add("demo", commands.demo, "compare FedAvg, Local and FedMask on digits, two classes per client")
    demo.add_argument("--out", metavar="DIR", default="fedjax-masks-demo", help="default: %(default)s")

    _add_run(add("run", commands.run, "run one experiment; --set overrides flags, flags override the file"))

    pretraining = add("pretrain", commands.pretrain, "train a model's first stages before any client does")
    add_flags(pretraining, PRETRAIN_FLAGS)
    pretraining.add_argument("--out", metavar="FILE.npz", help="also write the parameters to a file")

    partition = add("partition", commands.partition, "show the division of the data, without training")
    add_flags(partition, PARTITION_FLAGS)
    partition.add_argument("--out", metavar="FILE", help="also draw it: .png, .pdf or .svg")
    partition.add_argument("--json", action="store_true", help="print one JSON object, with all clients")

    sweep = add("sweep", commands.sweep, "run a grid of experiments; seeds and rates in one compiled program")
    sweep.add_argument("file", metavar="FILE.toml", help="a configuration with a [grid] or [[runs]]")
    sweep.add_argument("--out", metavar="DIR", required=True, help="the sweep's directory")
    sweep.add_argument("--resume", action="store_true", help="skip finished runs in --out, continue others")
    sweep.add_argument("--quiet", action="store_true", help="no plan, no progress, no table")

    bench = add("bench", commands.bench, "measure the engine's speed")
    bench.add_argument("--workload", metavar="NAME", help="default: femnist-cnn")
    bench.add_argument("--rounds", metavar="R", type=int, default=20, help="default: %(default)s")
    bench.add_argument("--plan", help="the execution plan (default: auto)")
    bench.add_argument(
        "--compile-for",
        metavar="CHIP",
        help="estimate the speed on h200, a100, t4 or tpu-v5e by a compilation; nothing runs",
    )
    bench.add_argument("--config", metavar="FILE", help="with --compile-for: a run instead of a workload")
    bench.add_argument("--json", action="store_true", help="print one JSON object")

    report = add("report", commands.report, "compare runs in one HTML file")
    _add_comparison(report)
    report.add_argument("--out", metavar="FILE.html", required=True, help="the file to write")

    _add_comparison(add("compare", commands.compare, "compare runs in the terminal"))

    claims = add("claims", commands.claims, "published figures beside measured ones")
    claims.add_argument("--json", action="store_true", help="print one JSON list")

    _add_list(add("list", commands.list_names, "list names: algorithms, models, data sets and others"))
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    add_flags(run, RUN_FLAGS)
    run.add_argument("--out", metavar="DIR", required=True, help="the run directory")
    run.add_argument("--resume", action="store_true", help="continue the run in --out")
    run.add_argument("--quiet", action="store_true", help="no progress")
    run.add_argument(
        "--coordinator", metavar="HOST:PORT", help="the first of several processes, or 'auto' on a cluster"
    )
    run.add_argument("--num-processes", metavar="N", type=int, help="number of processes of this run")
    run.add_argument("--process-id", metavar="I", type=int, help="number of this process, from 0")
    run.add_argument(
        "--join-timeout",
        metavar="S",
        type=int,
        default=300,
        help="seconds to wait for the other processes (default: 300)",
    )


def _add_comparison(command: argparse.ArgumentParser) -> None:
    command.add_argument("runs", metavar="RUN", nargs="+", help="a run directory, or a directory of such")
    command.add_argument(
        "--target",
        metavar="ACCURACY",
        type=float,
        help="accuracy, from 0 to 1, of the cost comparison (default: 95 %% of what half of the runs reach)",
    )
    command.add_argument(
        "--baseline", metavar="NAME", help="the algorithm to test against, or best (default: fedavg)"
    )
    command.add_argument("--tables", metavar="DIR", help="also write all tables as CSV and LaTeX")
    command.add_argument(
        "--setup-bytes",
        action="store_true",
        help="count the bytes that devices get before the first round",
    )


def _add_list(listing: argparse.ArgumentParser) -> None:
    listing.add_argument("kind", nargs="?", choices=tuple(KINDS), help="default: all")
    listing.add_argument("--algorithm", metavar="NAME", help="with keys: those of this algorithm alone")
    listing.add_argument("--model", metavar="NAME", help="with keys: those of this model alone")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
