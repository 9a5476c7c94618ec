"""Flags for configuration keys: ``--lr RATE`` stands for ``--set algorithm.lr=RATE``."""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_masks.core.errors import UserError


class Flag(NamedTuple):
    """A flag for a configuration key.

    Attributes:
      key: The key.
      metavar: The name of the value in the help.
      help: The help.
    """

    key: str
    metavar: str
    help: str


Flags = Mapping[str, Flag]

RUN_FLAGS: Flags = {
    "algorithm": Flag(
        "algorithm.name", "NAME", "the algorithm, required; see 'fedjax-masks list algorithms'"
    ),
    "dataset": Flag("data.name", "NAME", "the data set (default: digits)"),
    "data-dir": Flag("data.dir", "DIR", "folder of prepared tensorflow-datasets"),
    "model": Flag("model.name", "NAME", "the model (default: one that suits the data set)"),
    "partition": Flag("data.partition", "SPEC", "division of the data among clients (default: iid)"),
    "clients": Flag("data.clients", "N", "number of clients (default: 100)"),
    "cohort": Flag("cohort", "K", "clients per round (default: 10, or all where there are fewer)"),
    "rounds": Flag("rounds", "R", "rounds (default: 50)"),
    "epochs": Flag("training.epochs", "E", "local epochs (default: by algorithm)"),
    "lr": Flag("algorithm.lr", "RATE", "the clients' learning rate (default: by algorithm)"),
    "batch-size": Flag("training.batch_size", "B", "examples per local step (default: 10)"),
    "devices": Flag("devices", "SPEC", "devices and links, as in rpi4@wifi or rpi3+rpi4@4g,deadline=60"),
    "log": Flag("log", "NAMES", "records also go to tensorboard, wandb, mlflow; joined by +"),
    "seed": Flag("seed", "S", "seed of everything random but the partition (default: 0)"),
    "eval-every": Flag("eval_every", "R", "rounds between two evaluations (default: R/20)"),
}
PRETRAIN_FLAGS: Flags = {
    **{flag: RUN_FLAGS[flag] for flag in ("dataset", "data-dir", "model", "partition", "clients")},
    "source": Flag(
        "pretraining.source",
        "SOURCE",
        "fractal (default), public, {npz,safetensors}:FILE, or orbax:DIR",
    ),
    "epochs": Flag("pretraining.epochs", "E", "epochs on the source's images (default: 20)"),
    "lr": Flag("pretraining.lr", "RATE", "learning rate (default: 0.01)"),
    "seed": Flag("pretraining.seed", "S", "seed of fractals, parameters and order of examples (default: 0)"),
}
PARTITION_FLAGS: Flags = {
    **{flag: RUN_FLAGS[flag] for flag in ("dataset", "data-dir", "partition", "clients")},
    "seed": Flag("data.seed", "S", "the partition's seed (default: 0)"),
}


def add_flags(command: argparse.ArgumentParser, flags: Flags) -> None:
    """Adds ``--config``, flags for keys, and ``--set`` to a command."""
    command.add_argument("--config", metavar="FILE.toml", help="a TOML file with the configuration's keys")
    for name, flag in flags.items():
        command.add_argument(f"--{name}", dest=flag.key, metavar=flag.metavar, help=flag.help)
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key, see 'fedjax-masks list keys'; repeatable",
    )


def values_of(arguments: argparse.Namespace, flags: Flags) -> dict[str, Any]:
    """The values of a configuration: those of the file, then those of flags, then those of ``--set``.

    Raises:
      UserError: The file cannot be read, or an argument is malformed.
    """
    from fedjax_masks.algorithms import registry
    from fedjax_masks.experiment import config

    file_values = {} if arguments.config is None else config.read_file(arguments.config)
    flag_values = {flag.key: getattr(arguments, flag.key) for flag in flags.values()}
    flag_values = {key: value for key, value in flag_values.items() if value is not None}
    set_values = dict(map(_assignment, arguments.set))
    values = {**file_values, **flag_values, **set_values}
    name = values.get("algorithm.name")
    if name is not None and "algorithm.lr" in flag_values:
        registry.check_rate(str(name), flag_values["algorithm.lr"])
    return values


def _assignment(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UserError(f"--set {text}: must be KEY=VALUE")
    return key.strip(), value.strip()
