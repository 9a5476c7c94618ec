"""Rules between the values of a configuration: defaults that depend on other values, and contradictions.

Values are by dotted keys, each of the type of its key; see :mod:`fedjax_masks.experiment.sections`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from fedjax_masks.algorithms import registry
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.schedules import parse_schedule
from fedjax_masks.data import files
from fedjax_masks.data.sources import is_user_data
from fedjax_masks.experiment.trackers import parse as parse_trackers

_MAX_EVALUATED = 10_000  # clients, by default


def fill_defaults(values: dict[str, Any], keys: Collection[str]) -> None:
    """Replaces defaults that depend on other values, in place.

    Args:
      values: All values of a configuration.
      keys: The keys that the user has set; their values stay.
    """
    if values["data.clients"] is None and not values["data.partition"].startswith("natural"):
        values["data.clients"] = 100
    if "cohort" not in keys:
        clients = values["data.clients"]
        if clients is None and is_user_data(values["data.name"]):
            clients = files.count_clients(values["data.name"])
        values["cohort"] = min(values["cohort"], clients or values["cohort"])
    if "eval_every" not in keys:
        values["eval_every"] = -(-values["rounds"] // 20)
    if values.get("algorithm.warm_up", 0) is None:
        values["algorithm.warm_up"] = values["rounds"] // 2
    if values["eval_clients"] is None and (values["data.clients"] or 0) > _MAX_EVALUATED:
        values["eval_clients"] = _MAX_EVALUATED
    if values["server_optimizer.name"] and values["server_optimizer.lr"] is None:
        values["server_optimizer.lr"] = 1.0 if values["server_optimizer.name"] == "sgd" else 0.01
    if values["robust.merge"] == "trimmed_mean" and values["robust.trim"] is None:
        values["robust.trim"] = 0.2
    if values["privacy.norm"] and values["privacy.multiplier"] is None:
        values["privacy.multiplier"] = 1.0


def check_values(values: Mapping[str, Any]) -> None:
    """Refuses values that contradict each other, and backends that do not exist.

    Raises:
      UserError: A value does not go with another one, or there is no such backend.
    """
    parse_trackers(values["log"])
    if values["training.schedule"] is not None:
        parse_schedule(values["training.schedule"], values["rounds"])
    clients, cohort = values["data.clients"], values["cohort"]
    if clients is not None and cohort > clients:
        raise UserError(f"cohort={cohort}: must be from 1 to {clients}, the number of clients")
    _check_server_optimizer(values)
    if values["robust.trim"] is not None and values["robust.merge"] != "trimmed_mean":
        raise UserError(f"robust.trim={values['robust.trim']}: must go with robust.merge=trimmed_mean")
    _check_privacy(values)


def _check_server_optimizer(values: Mapping[str, Any]) -> None:
    name, optimizer = values["algorithm.name"], values["server_optimizer.name"]
    if optimizer and "server_optimizer" not in registry.parameters(name):
        algorithms = [
            other for other in registry.importable() if "server_optimizer" in registry.parameters(other)
        ]
        raise UserError(
            f"server_optimizer.name={optimizer}: must be left out with algorithm.name={name}; it belongs to "
            f"{', '.join(algorithms)}"
        )
    if values["server_optimizer.lr"] is not None and not optimizer:
        raise UserError(
            f"server_optimizer.lr={values['server_optimizer.lr']}: must go with server_optimizer.name"
        )


def _check_privacy(values: Mapping[str, Any]) -> None:
    """Refuses values that the guarantee of :mod:`fedjax_masks.transforms.privacy` does not cover."""
    if values["privacy.norm"] is None:
        for key in ("privacy.multiplier", "privacy.delta"):
            if values[key] is not None:
                raise UserError(f"{key}={values[key]}: must go with privacy.norm")
        return
    for key, default, reason in (
        ("robust.merge", "mean", "it reads single uploads, and the guarantee covers their sum"),
        ("robust.clip", None, "it reads single uploads, and the guarantee covers their sum"),
        ("robust.clip_to_median", None, "it reads single uploads, and the guarantee covers their sum"),
        ("wire.up", None, "it loses noise before the sum"),
        ("attack.kind", None, "hostile clients add no noise"),
    ):
        if values[key] != default:
            raise UserError(f"{key}={values[key]}: must be left out with privacy.norm; {reason}")
