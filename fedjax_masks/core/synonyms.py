"""Names that other tools and papers use, and the names here: for hints, never accepted by themselves."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# Without case and punctuation; of several names here, the first that is accepted where it is asked for.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    # algorithms
    "centralized": ("fedavg",),
    "fedadam": ("fedavg with server_optimizer.name=adam",),
    "fedadagrad": ("fedavg with server_optimizer.name=adagrad",),
    "fedavgm": ("fedavg with server_optimizer.momentum=0.9",),
    "fedopt": ("fedavg with server_optimizer.name=adam",),
    "fedyogi": ("fedavg with server_optimizer.name=yogi",),
    "localonly": ("local",),
    "majorityvote": ("sign",),
    "separate": ("local",),
    "signsgd": ("sign",),
    "splitlearning": ("splitfed",),
    "standalone": ("local",),
    # data sets and models
    "emnist": ("emnist/byclass",),
    "femnist": ("emnist/byclass", "femnist-cnn"),
    "fmnist": ("fashion_mnist",),
    "lenet5": ("lenet",),
    "perceptron": ("mlp",),
    "simplecnn": ("cnn",),
    "svhn": ("svhn_cropped",),
    # partitions
    "dir": ("dirichlet",),
    "homogeneous": ("iid",),
    "lda": ("dirichlet",),
    "noniid": ("dirichlet", "shards"),
    "pathological": ("shards",),
    "shard": ("shards",),
    "uniform": ("iid",),
    # keys
    "algorithm": ("algorithm.name",),
    "alpha": ("data.partition",),
    "beta": ("data.partition",),
    "bs": ("training.batch_size",),
    "clientlr": ("algorithm.lr", "algorithm.score_lr"),
    "clientspercohort": ("cohort",),
    "clientsperround": ("cohort",),
    "cohortsize": ("cohort",),
    "commrounds": ("rounds",),
    "dataset": ("data.name",),
    "eta": ("algorithm.lr", "algorithm.score_lr"),
    "globalrounds": ("rounds",),
    "learningrate": ("algorithm.lr", "algorithm.score_lr"),
    "localepochs": ("training.epochs",),
    "localep": ("training.epochs",),
    "lr": ("algorithm.lr", "algorithm.score_lr"),
    "model": ("model.name",),
    "minibatchsize": ("training.batch_size",),
    "nclients": ("data.clients",),
    "nrounds": ("rounds",),
    "numclients": ("data.clients",),
    "numclientsperround": ("cohort",),
    "numdevices": ("data.clients",),
    "numepochs": ("training.epochs",),
    "numrounds": ("rounds",),
    "numusers": ("data.clients",),
    "optimizer": ("algorithm.optimizer", "algorithm.score_optimizer"),
    "outdir": ("out",),
    "outputdir": ("out",),
    "participation": ("cohort",),
    "randomseed": ("seed",),
    "rate": ("algorithm.lr", "algorithm.score_lr"),
    "serverlr": ("server_optimizer.lr",),
    "stepsize": ("algorithm.lr", "algorithm.score_lr"),
    "momentum": ("algorithm.momentum", "algorithm.score_momentum"),
    "weightdecay": ("algorithm.weight_decay", "algorithm.score_weight_decay"),
    "wd": ("algorithm.weight_decay", "algorithm.score_weight_decay"),
}


def bare(name: str) -> str:
    """A name without case and punctuation.

    >>> bare("Fashion-MNIST"), bare("lg_fedavg")
    ('fashionmnist', 'lgfedavg')
    """
    return re.sub(r"[\W_]", "", name).lower()


def synonym(name: str, accepted: Iterable[str]) -> str | None:
    """The accepted name that is written a little differently, or that means the same.

    >>> synonym("FashionMNIST", ["mnist", "fashion_mnist"]), synonym("learning_rate", ["algorithm.lr"])
    ('fashion_mnist', 'algorithm.lr')
    """
    accepted = list(accepted)
    alike = [other for other in accepted if bare(other) == bare(name)]
    meant = [other for other in _SYNONYMS.get(bare(name), ()) if other.partition(" ")[0] in accepted]
    return next(iter([*alike, *meant]), None)


def meant(name: str, accepted: Iterable[str]) -> str | None:
    """The accepted name that was probably meant; None where nothing is near.

    >>> meant("fedmsk", ["fedmask", "fedavg"]), meant("zebra", ["fedmask"])
    ('fedmask', None)
    """
    accepted = list(accepted)
    near = get_close_matches(name, accepted, n=1) or get_close_matches(name.lower(), accepted, n=1)
    return synonym(name, accepted) or next(iter(near), None)


def meant_key(key: str, accepted: Iterable[str]) -> str | None:
    """The accepted dotted key that was probably meant: one that ends alike, else one that is like it.

    >>> meant_key("lr", ["log", "pretraining.lr", "algorithm.lr", "algorithm.name"])
    'algorithm.lr'
    """
    section, _, last = key.rpartition(".")
    ends = {other: other.rpartition(".")[2] for other in accepted}
    alike = [other for other, end in ends.items() if bare(end) == bare(last)]
    own = [other for other in alike if other.startswith(("algorithm.", "model."))]
    near = get_close_matches(key, alike, n=1, cutoff=0.0) or (section and get_close_matches(key, ends, n=1))
    misspelt = get_close_matches(last, ends.values(), n=1)
    named = [*(other for other in ends if bare(other) == bare(key)), *own, synonym(last, ends), *near]
    named += [other for other, end in ends.items() if end in misspelt]
    return next(filter(None, named), None)


def meant_partition(text: str, usages: Iterable[str]) -> str | None:
    """A partition as it is written here: ``dirichlet(0.1)``, ``Dir 0.1`` or ``dirichlet_0.1``.

    Args:
      text: What was written.
      usages: The accepted names, without arguments.

    >>> meant_partition("dirichlet(0.1)", ["dirichlet", "shards"]), meant_partition("Shards_2", ["shards"])
    ('dirichlet:0.1', 'shards:2')
    """
    parts = re.fullmatch(r"\s*([A-Za-z][A-Za-z _-]*?)[\s(:=_-]*([\d.][\d.,;:\s]*)?\)?\s*", text)
    name = None if parts is None else meant(parts[1], usages)
    if name is None or parts is None:
        return None
    return ":".join([name, *re.findall(r"[\d.]+", parts[2] or "")])
