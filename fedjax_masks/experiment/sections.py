"""The sections of a configuration: a dataclass each, whose attributes are the keys.

``fedjax-masks list keys`` prints the first sentence on each attribute.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fedjax_masks.algorithms.registry import OptimizerName
from fedjax_masks.core.choices import AttackKind, Augmentation, DataPlace, FractalStyle, Precision, StatePlace
from fedjax_masks.core.options import Bounds, Count, Decay, Momentum, Rate, Seed, Share
from fedjax_masks.data.inputs import Channels
from fedjax_masks.data.labels import MAX_CLASSES
from fedjax_masks.data.scaling import Scale


@dataclass(frozen=True)
class DataConfig:
    """The data and their division among clients; see :func:`fedjax_masks.load_task`.

    Attributes:
      name: The data set.
      dir: Folder of prepared tensorflow-datasets; none downloads a data set that is not prepared.
      cache_dir: Folder of decoded arrays; none is ``$FEDJAX_MASKS_CACHE`` or ``~/.cache/fedjax_masks``.
      partition: Division of the data among clients.
      clients: Number of clients; none is 100, or all clients of the data set with ``natural``.
      seed: Seed of the partition, independent of the run's seed.
      examples_per_client: Largest number of training examples per client, chosen at random; none is all.
      test_per_client: Largest number of test examples per client, chosen at random; none is all.
      scale: Scale of the inputs: ``auto`` keeps inputs that train without scaling, standardizes other tables,
        and brings other images to the range from -1 to 1; see :func:`fedjax_masks.data.scaling.scale_inputs`.
      channels: Position of the channels in npz: and npy: images: ``first`` moves channels to the end;
        ``auto`` refuses images that look channel-first.
      relabel: Whether labels of npz: and npy: data are numbered anew, in sorted order.
      classes: Number of classes of npz: and npy: data; none counts the labels.
    """

    name: str = "digits"
    dir: str | None = None
    cache_dir: str | None = None
    partition: str = "iid"
    clients: Count | None = None
    seed: Seed = 0
    examples_per_client: Count | None = None
    test_per_client: Count | None = None
    scale: Scale = "auto"
    channels: Channels = "auto"
    relabel: bool = False
    classes: Annotated[int, Bounds(1, MAX_CLASSES)] | None = None


@dataclass(frozen=True)
class Part:
    """An algorithm or a model, by name.

    Attributes:
      name: The name.
      options: The keyword-only parameters of its factory.
    """

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ServerOptimizerConfig:
    """The server optimizer (Reddi et al. 2021).

    Attributes:
      name: Server optimizer; none applies the mean update itself.
      lr: Learning rate of the server optimizer; none is 1 for sgd and 0.01 for the others.
      momentum: Momentum of sgd and rmsprop.
      weight_decay: Weight decay, decoupled for adamw and added to the gradient for the others.
    """

    name: OptimizerName | None = None
    lr: Rate | None = None
    momentum: Momentum = 0.0
    weight_decay: Decay = 0.0


@dataclass(frozen=True)
class TrainingConfig:
    """Local training.

    Attributes:
      epochs: Local epochs.
      batch_size: Examples per local step.
      augment: Augmentation of every minibatch.
      schedule: Factor of all updates by round, such as ``cosine`` or ``exponential:0.99``; see
        :func:`~fedjax_masks.core.schedules.parse_schedule`.
      clip_norm: Largest global l2 norm of a gradient; none does not clip.
      precision: Precision of matrix products, where a platform has several.
    """

    epochs: Count
    batch_size: Count = 10
    augment: Augmentation = "none"
    schedule: str | None = None
    clip_norm: Rate | None = None
    precision: Precision = "float32"


@dataclass(frozen=True)
class PretrainingConfig:
    """The initial parameters of a run.

    Attributes:
      source: Source of the initial parameters: ``random``; ``fractal``, training on images of fractals;
        ``public``, training on examples of the data set that no client has; or a file, see
        :func:`fedjax_masks.models.parameters.read`.
      until: Last stage that comes from the source; none is all but the output layer, or all stages of a file.
      epochs: Epochs of training on the source's images.
      batch_size: Examples per step.
      lr: Learning rate of SGD, with Nesterov momentum 0.9 and weight decay 5e-4; a tenth from half of the
        steps on, a hundredth from four fifths on (Wu et al. 2024, arXiv 2304.05495).
      classes: Number of classes of fractals.
      per_class: Fractals per class.
      style: Colors of fractals in images of several channels: ``gray``, ``color``, or ``background``, color
        before a random background; see :func:`fedjax_masks.data.fractals.fractal_images`.
      augment: Augmentation of every minibatch; ``crop_flip`` as in Wu et al. 2024.
      seed: Seed of fractals, parameters and the order of examples.
    """

    source: str = "random"
    until: str | None = None
    epochs: Count = 20
    batch_size: Count = 50
    lr: Rate = 0.01
    classes: Count = 60
    per_class: Count = 100
    style: FractalStyle = "color"
    augment: Augmentation = "none"
    seed: Seed = 0


@dataclass(frozen=True)
class WireConfig:
    """Compression; see :func:`fedjax_masks.communication.codecs.parse_codec`.

    Attributes:
      up: Compression of uploads, such as ``quantize:8``; see 'fedjax-masks list wires'.
      down: Compression of messages from the server.
    """

    up: str | None = None
    down: str | None = None


@dataclass(frozen=True)
class RobustConfig:
    """Defences of the server against hostile clients; see :mod:`fedjax_masks.transforms.robust`.

    Attributes:
      merge: Merge of the uploads, in place of their weighted mean.
      trim: Share of values that ``trimmed_mean`` discards at either end; by default 0.2.
      clip: Largest l2 norm of an upload; none does not clip.
      clip_to_median: Largest l2 norm of an upload, in multiples of the cohort's median norm.
    """

    merge: Literal["mean", "median", "trimmed_mean"] = "mean"
    trim: Annotated[float, Bounds(0, 0.5, below=True)] | None = None
    clip: Rate | None = None
    clip_to_median: Rate | None = None


@dataclass(frozen=True)
class AttackConfig:
    """Hostile clients; see :func:`fedjax_masks.transforms.attacks.with_attack`.

    Attributes:
      kind: Change that hostile clients make to their uploads; none is no attack.
      share: Share of hostile clients among all clients.
      factor: Factor of an upload under ``scale``.
      seed: Seed of the choice of hostile clients.
    """

    kind: AttackKind | None = None
    share: Share = 0.2
    factor: Rate = 1000.0
    seed: Seed = 0


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy of whole clients; see :mod:`fedjax_masks.transforms.privacy`.

    Attributes:
      norm: Largest l2 norm of an upload; none neither clips nor adds noise.
      multiplier: Standard deviation of the noise on a round's sum, in multiples of ``norm``; by default 1.
      delta: Delta of the guarantee; by default the number of clients to the power of -1.1.
    """

    norm: Rate | None = None
    multiplier: Rate | None = None
    delta: Annotated[float, Bounds(0, 1, above=True, below=True)] | None = None


@dataclass(frozen=True)
class StorageConfig:
    """The places of arrays between chunks of rounds; see :class:`fedjax_masks.simulation.Storage`.

    Attributes:
      clients: Place of the clients' states; ``auto`` takes the host if they would fill half of the device.
      data: Place of the training data; ``auto`` takes the host if they would fill half of the device.
    """

    clients: StatePlace = "auto"
    data: DataPlace = "auto"


SECTIONS: Mapping[str, type] = {
    "data": DataConfig,
    "server_optimizer": ServerOptimizerConfig,
    "training": TrainingConfig,
    "pretraining": PretrainingConfig,
    "wire": WireConfig,
    "robust": RobustConfig,
    "attack": AttackConfig,
    "privacy": PrivacyConfig,
    "storage": StorageConfig,
}
"""The sections by prefix; the keys of ``algorithm`` and ``model`` depend on the name instead."""
