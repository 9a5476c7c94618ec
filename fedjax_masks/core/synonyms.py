"""Names that other tools and papers use, for hints in errors; no command takes these names."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# Synonyms are plain names, see plain_name. Of several meanings, the first that exists in the context counts.
_MEANINGS: dict[tuple[str, ...], str] = {
    # algorithms
    ("fedavg",): "centralized",
    ("fedavg with server_optimizer.momentum=0.9",): "fedavgm",
    ("fedavg with server_optimizer.name=adagrad",): "fedadagrad",
    ("fedavg with server_optimizer.name=adam",): "fedadam fedopt",
    ("fedavg with server_optimizer.name=yogi",): "fedyogi",
    ("local",): "localonly separate standalone",
    ("sign",): "majorityvote signsgd",
    ("splitfed",): "splitlearning",
    # data sets and models
    ("cnn",): "simplecnn",
    ("emnist/byclass",): "emnist",
    ("emnist/byclass", "femnist-cnn"): "femnist",
    ("fashion_mnist",): "fmnist",
    ("lenet",): "lenet5",
    ("mlp",): "perceptron",
    ("svhn_cropped",): "svhn",
    # partitions
    ("dirichlet",): "dir lda",
    ("dirichlet", "shards"): "noniid",
    ("iid",): "homogeneous uniform",
    ("shards",): "pathological shard",
    # keys
    ("algorithm.absent",): "stalemean",
    ("algorithm.lr", "algorithm.score_lr"): "clientlr eta learningrate lr rate stepsize",
    ("algorithm.momentum", "algorithm.score_momentum"): "momentum",
    ("algorithm.name",): "algorithm",
    ("algorithm.optimizer", "algorithm.score_optimizer"): "optimizer",
    ("algorithm.weight_decay", "algorithm.score_weight_decay"): "wd weightdecay",
    ("cohort",): "clientspercohort clientsperround cohortsize numclientsperround participation",
    ("data.clients",): "nclients numclients numdevices numusers",
    ("data.name",): "dataset",
    ("data.partition",): "alpha beta",
    ("model.name",): "model",
    ("out",): "outdir outputdir",
    ("rounds",): "commrounds globalrounds nrounds numrounds",
    ("seed",): "randomseed",
    ("server_optimizer.lr",): "serverlr",
    ("training.batch_size",): "bs minibatchsize",
    ("training.epochs",): "localep localepochs numepochs",
}
_SYNONYMS = {word: names for names, words in _MEANINGS.items() for word in words.split()}


def plain_name(name: str) -> str:
    """A name in lower case, without punctuation.

    >>> plain_name("Fashion-MNIST"), plain_name("lg_fedavg")
    ('fashionmnist', 'lgfedavg')
    """
    return re.sub(r"[\W_]", "", name).lower()


def synonym(name: str, names: Iterable[str]) -> str | None:
    """The existing name with other case or punctuation, or with the same meaning; None without one.

    >>> synonym("FashionMNIST", ["mnist", "fashion_mnist"]), synonym("learning_rate", ["algorithm.lr"])
    ('fashion_mnist', 'algorithm.lr')
    """
    names = list(names)
    spellings = [other for other in names if plain_name(other) == plain_name(name)]
    synonyms = [other for other in _SYNONYMS.get(plain_name(name), ()) if other.partition(" ")[0] in names]
    return next(iter([*spellings, *synonyms]), None)


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The existing name that a user probably meant; None where no name is near.

    >>> nearest_name("fedmsk", ["fedmask", "fedavg"]), nearest_name("zebra", ["fedmask"])
    ('fedmask', None)
    """
    names = list(names)
    near = get_close_matches(name, names, n=1) or get_close_matches(name.lower(), names, n=1)
    return synonym(name, names) or next(iter(near), None)


def nearest_key(key: str, keys: Iterable[str]) -> str | None:
    """The existing dotted key that a user probably meant; None where no key is near.

    A key with the same last word comes first, then a key with a similar one.

    >>> nearest_key("lr", ["log", "pretraining.lr", "algorithm.lr", "algorithm.name"])
    'algorithm.lr'
    """
    section, _, last = key.rpartition(".")
    ends = {other: other.rpartition(".")[2] for other in keys}
    same_end = [other for other, end in ends.items() if plain_name(end) == plain_name(last)]
    options = [other for other in same_end if other.startswith(("algorithm.", "model."))]
    near = get_close_matches(key, same_end, n=1, cutoff=0.0)
    near = near or (section and get_close_matches(key, ends, n=1))
    similar_ends = get_close_matches(last, ends.values(), n=1)
    spellings = [other for other in ends if plain_name(other) == plain_name(key)]
    matches = [*spellings, *options, synonym(last, ends), *near]
    matches += [other for other, end in ends.items() if end in similar_ends]
    return next(filter(None, matches), None)


def nearest_partition(text: str, names: Iterable[str]) -> str | None:
    """The partition that a text like ``dirichlet(0.1)``, ``Dir 0.1`` or ``dirichlet_0.1`` means, if any.

    Args:
      text: The text.
      names: The names of partitions, without arguments.

    >>> nearest_partition("dirichlet(0.1)", ["dirichlet", "shards"])
    'dirichlet:0.1'
    >>> nearest_partition("Shards_2", ["shards"])
    'shards:2'
    """
    parts = re.fullmatch(r"\s*([A-Za-z][A-Za-z _-]*?)[\s(:=_-]*([\d.][\d.,;:\s]*)?\)?\s*", text)
    name = None if parts is None else nearest_name(parts[1], names)
    if name is None or parts is None:
        return None
    return ":".join([name, *re.findall(r"[\d.]+", parts[2] or "")])
