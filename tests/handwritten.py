"""Runs written by hand, and a reader of the pages made from them."""

import json
from html.parser import HTMLParser

import numpy as np

COHORT = 4
KEYS = [
    *("round", "train_loss", "global_accuracy"),
    *("personal_accuracy_mean", "personal_accuracy_p10", "personal_accuracy_p90"),
    *("bytes_up", "bytes_down", "bytes_up_total", "bytes_down_total", "client_flops"),
    *("client_flops_total", "server_flops"),
    *("sim_seconds", "energy_joules", "density", "cohort_size", "clients_dropped", "wall_seconds"),
]


def make_run(
    folder,
    *,
    algorithm="fedavg",
    personal=0.8,
    global_=0.75,
    up=500_000,
    down=1_000_000,
    rounds=20,
    extra=None,
    data="digits",
    model="cnn",
    seed=0,
    options=None,
    summary=None,
    spent=None,
    trained=None,
    diverged=None,
    data_seed=None,
    config=None,
):
    """Writes a run that is evaluated every fifth round.

    ``up``, ``down``: bytes per client and round; ``spent``: further totals, per round; ``trained``: how many
    of the ten clients have, and the mean of these; without it the run is one of an older version.
    """
    folder.mkdir(parents=True)
    settings = {
        "algorithm": {"name": algorithm, **(options or {})},
        "data": {"name": data, "partition": "shards:2", "clients": 10},
        "model": {"name": model},
        "training": {"epochs": 1, "batch_size": 10},
        "rounds": rounds,
        "cohort": COHORT,
        "seed": seed,
        "versions": {"jax": "0.10.2"},
        "platform": {"backend": "cpu"},
        "plan": "scan",
    } | (config or {})
    if data_seed is not None:
        settings["data"]["seed"] = data_seed
    (folder / "config.json").write_text(json.dumps(settings))
    lines = []
    for done in range(5, rounds + 1, 5):
        share = done / rounds
        record = dict.fromkeys(KEYS) | {
            "round": done,
            "bytes_up": up * COHORT,
            "bytes_down": down * COHORT,
            "bytes_up_total": up * COHORT * done,
            "bytes_down_total": down * COHORT * done,
            "cohort_size": COHORT,
            "extra": {key: value * (2 - share) for key, value in (extra or {}).items()},
        }
        record |= {key: value * done for key, value in (spent or {}).items()}
        if personal is not None:
            record["personal_accuracy_mean"] = personal * share
            record["personal_accuracy_p10"] = (personal - 0.1) * share
            record["personal_accuracy_p90"] = (personal + 0.1) * share
        if trained is not None:
            number, mean = trained
            record |= {"clients_seen": number, "num_clients": 10, "personal_accuracy_mean_seen": mean * share}
            record |= {f"personal_accuracy_{end}_seen": mean * share for end in ("p10", "p90")}
        if diverged is not None:
            record["diverged"] = diverged
        record["global_accuracy"] = None if global_ is None else global_ * share
        lines.append(json.dumps(record))
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    clients = [] if personal is None else list(np.linspace(personal - 0.1, personal + 0.1, 10))
    done = {"rounds_per_second": 2.5, "setup_bytes": 0, "client_accuracy": clients}
    if trained is not None:
        done["client_seen"] = [client >= 10 - trained[0] for client in range(10)]
    done |= summary or {}
    (folder / "summary.json").write_text(json.dumps(done))
    return folder


class Page(HTMLParser):
    """Collects what a page refers to, its element ids and its text."""

    def __init__(self, text):
        super().__init__()
        self.references, self.ids, self.tags, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.references.append(value)
            if key == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.words.append(data)


def read(path):
    text = path.read_text("utf-8")
    return text, Page(text)
