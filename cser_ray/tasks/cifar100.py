"""cifar100: the image task of the CSER paper, Wide-ResNet-40-8 with random crops and flips; needs the CIFAR-100 files.

The released code of the paper trained on the 20 coarse classes (the default of the library it used): `coarse_labels`
does the same, and such results compare only among themselves. Images stay uint8 in memory and are augmented in torch.
"""

import functools
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from cser_ray.tasks.base import Held, Splits, Task
from cser_ray.tasks.models import build_model, check_model
from cser_ray.tasks.splitting import splits_fingerprint, stratified_order

DEFAULT_FOLDER = "~/.cache/cser-ray"
PADDING = 4
"""Black pixels around an image before a random crop of its own size."""
SPLIT_SEED = 100


@dataclass(frozen=True)
class Images(Held):
    """Images uint8 [N, 3, s, s] with targets [N]; a batch is float, standardised by `mean` and `deviation` [3].

    A batch lies on the device of `images`.
    """

    images: Tensor
    targets: Tensor
    mean: Tensor
    deviation: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def drawn(self, index: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Three numbers [rows, b, 3] in [0, 1) an image, of its row's generator."""
        return torch.stack([torch.rand(index.shape[1], 3, generator=g, device=g.device) for g in generators])

    def made(self, index: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each image cropped and flipped by its numbers; as it is where there are none."""
        chosen = self.images[index]
        if drawn is not None:
            chosen = crop_and_flip(chosen.flatten(0, 1), drawn.flatten(0, 1)).view_as(chosen)
        return (chosen - self.mean[:, None, None]) / self.deviation[:, None, None], self.targets[index]


def crop_and_flip(images: Tensor, draws: Tensor) -> Tensor:
    """Pad each image [m, c, s, s] with black, cut s x s out at random, mirror half of them; draws [m, 3] in [0, 1)."""
    m, c, side, _ = images.shape
    padded = nn.functional.pad(images, [PADDING] * 4)
    top, left = (draws[:, :2] * (2 * PADDING + 1)).long().unsqueeze(-1).unbind(1)
    along = torch.arange(side, device=images.device)
    row, column = top + along, left + torch.where(draws[:, 2:] < 0.5, along.flip(0), along)
    sample, channel = (torch.arange(size, device=images.device) for size in (m, c))
    return padded[
        sample[:, None, None, None], channel[None, :, None, None], row[:, None, :, None], column[:, None, None, :]
    ]


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3] of images uint8 [N, 3, s, s], exact: counted, not summed in floating point."""
    counts = torch.stack([torch.bincount(images[:, channel].flatten(), minlength=256) for channel in range(3)]).double()
    values = torch.arange(256).double()
    pixels = counts.sum(1)
    mean = counts @ values / pixels
    return mean.float(), (counts @ values**2 / pixels - mean**2).sqrt().float()


def read(root: Path, *, train: bool, coarse: bool) -> tuple[Tensor, Tensor]:
    """Read images uint8 [N, 3, 32, 32] and labels int64 [N] from the published files, by torchvision's loading code.

    Raises FileNotFoundError where there are none, and ValueError where they are not the published ones.
    """
    from torchvision.datasets import CIFAR100

    folder = root / CIFAR100.base_folder
    names = [name for name, _ in [*CIFAR100.train_list, *CIFAR100.test_list]] + [CIFAR100.meta["filename"]]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"cifar100 looked for {', '.join(map(str, missing))} in {folder}: download 'CIFAR-100 python version' "
            f"({CIFAR100.filename}) from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and give the folder "
            f"that then holds {CIFAR100.base_folder}/ as --data-dir"
        )
    try:
        dataset = CIFAR100(root, train=train, download=False)  # checks every file's MD5 before it unpickles any
    except RuntimeError as error:
        raise ValueError(
            f"the CIFAR-100 files in {folder} are not the published ones (their MD5 differs): "
            f"unpack {CIFAR100.filename} again"
        ) from error
    labels = dataset.targets
    if coarse:  # in the same files, whose sums have just been checked; torchvision keeps the fine labels alone
        parts = CIFAR100.train_list if train else CIFAR100.test_list
        labels = [
            label
            for name, _ in parts
            for label in pickle.loads((folder / name).read_bytes(), encoding="latin1")["coarse_labels"]
        ]
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


@functools.cache
def load(root: Path, *, coarse: bool) -> Splits:
    """A tenth of the 50 000 training images is for validation, stratified by label; see `read` for the errors."""
    images, labels = read(root, train=True, coarse=coarse)
    order = stratified_order(labels, SPLIT_SEED)
    validation, train = order[: len(order) // 10], order[len(order) // 10 :]
    statistics = channel_statistics(images[train])
    return Splits(
        train=Images(images[train], labels[train], *statistics),
        validation=Images(images[validation], labels[validation], *statistics),
        test=Images(*read(root, train=False, coarse=coarse), *statistics),
    )


@functools.cache
def hash_of(root: Path, *, coarse: bool) -> str:
    """Fingerprint of the splits; takes about half a second."""
    return splits_fingerprint(load(root, coarse=coarse))


STEPS_A_PASS = 45_000 // 8 // 16
"""Steps of a pass over the training part by 8 workers of batch 16."""


class Cifar100(Task):
    """CIFAR-100 (45 000 / 5 000 / 10 000 images) and WRN-40-8 (35.8 M parameters), or another `model` by name.

    `model`: see `models.build_model`. `data_dir`: the folder that holds cifar-100-python/. `coarse_labels`: the 20
    superclasses in place of the 100 classes.
    """

    name = "cifar100"
    description = "CIFAR-100 images, Wide-ResNet-40-8 or --model: hours on a GPU; needs the data in --data-dir"
    model_name = "wrn-40-8"
    classes = 100
    batch_size = 16
    study_defaults: ClassVar = {  # paper, section 5.1, and the authors' scripts
        "steps": 200 * STEPS_A_PASS,
        "lrs": (0.05, 0.1, 0.5, 1.0),
        "ratios": (32.0, 256.0, 1024.0),
        "evaluations": 40,
    }

    def __init__(self, model: str = "", data_dir: str = "", coarse_labels: bool = False) -> None:
        self.model_name = model or self.model_name
        self.classes = 20 if coarse_labels else 100
        self.data_dir = Path(data_dir or DEFAULT_FOLDER).expanduser().absolute()
        if model:
            check_model(model, self.classes, side=32)

    def model(self) -> nn.Module:
        return build_model(self.model_name, self.classes)

    def splits(self) -> Splits:
        return load(self.data_dir, coarse=self.classes == 20)

    def constant_loss(self) -> float:
        return math.log(self.classes)

    def content_hash(self) -> str:
        return hash_of(self.data_dir, coarse=self.classes == 20)
