"""imagenet: ImageNet-1k, or any folder of pictures laid out like it, and ResNet-50; needs the data and GPUs.

Pictures are read from disk a batch at a time by a few threads: decoding and resizing release the interpreter's lock.
"""

import functools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cser_ray.tasks.base import Dataset, Splits, Task
from cser_ray.tasks.models import build_model, check_model
from cser_ray.tasks.splitting import fingerprint, stratified_order

DEFAULT_FOLDER = "~/.cache/cser-ray/imagenet"
SIDE, RESIZED = 224, 256
"""Pixels of a sample's side, and of a picture's shorter side before the central crop of evaluation."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's channel statistics, of pixels in [0, 1], as torchvision's models take them."""
TRIES = 10
"""Crops tried before the central one, as in torchvision's RandomResizedCrop."""
SPLIT_SEED = 1000


@dataclass(frozen=True)
class Pictures(Dataset):
    """Picture files [N] with targets [N]; a batch is float [*index.shape, 3, 224, 224]."""

    files: tuple[str, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, index: Tensor, generators: Sequence[torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """Each picture by RandomResizedCrop and flip from its row's generator; resized and cut centrally without."""
        files = [self.files[number] for number in index.flatten().tolist()]
        draws: list[Tensor | None] = [None] * len(files)
        if generators is not None:
            # how many numbers a row draws must not hang on its pictures' sizes, or on how many tries a crop took
            rows = [torch.rand(index.shape[1], 2 * TRIES + 3, generator=g, device=g.device).cpu() for g in generators]
            draws = list(torch.cat(rows))
        pixels = torch.stack(list(threads().map(picture, files, draws))).view(*index.shape, 3, SIDE, SIDE)
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        return (pixels / 255 - mean) / deviation, self.targets[index]


@functools.cache
def threads() -> ThreadPoolExecutor:
    """The process's readers."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="pictures")


def crop_box(draws: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a crop with 8 to 100 % of the area and sides from 3:4 to 4:3.

    The rule of torchvision's RandomResizedCrop, from numbers drawn beforehand: draws [23] in [0, 1).
    """
    area = width * height * (0.08 + 0.92 * draws[:TRIES].double())
    ratio = ((2 * draws[TRIES : 2 * TRIES].double() - 1) * math.log(4 / 3)).exp()
    wide, high = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    if fits.any():
        first = int(fits.int().argmax())
        w, h = int(wide[first]), int(high[first])
        return int(draws[-3] * (height - h + 1)), int(draws[-2] * (width - w + 1)), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def picture(file: str, draws: Tensor | None) -> Tensor:
    """Read one picture as uint8 [3, 224, 224], cropped and flipped by `draws` [23]; central where they are None."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms import functional

    image: Any = default_loader(file)
    if draws is None:
        image = functional.center_crop(functional.resize(image, RESIZED), SIDE)
    else:
        image = functional.resized_crop(image, *crop_box(draws, *image.size), [SIDE, SIDE])
        image = functional.hflip(image) if draws[-1] < 0.5 else image
    return functional.pil_to_tensor(image)  # type: ignore[no-any-return]


def class_folders(root: Path) -> list[str]:
    """Names of the classes: the folders in train/. Raises FileNotFoundError where train/ or val/ is missing."""
    if missing := [f"{part}/" for part in ("train", "val") if not (root / part).is_dir()]:
        raise FileNotFoundError(
            f"imagenet looked for {' and '.join(missing)} in {root}: ask for access to ILSVRC2012 at "
            "https://image-net.org/download.php, unpack ILSVRC2012_img_train.tar to train/CLASS/*.JPEG and "
            "ILSVRC2012_img_val.tar to val/CLASS/*.JPEG (one folder a class, as n01440764), and give the folder that "
            "holds train/ and val/ as --data-dir"
        )
    return sorted(entry.name for entry in os.scandir(root / "train") if entry.is_dir())


@functools.cache
def load(root: Path) -> Splits:
    """2 % of train/ is for validation, stratified by class; val/ is the test split, for its own labels are not public.

    Raises FileNotFoundError as `class_folders` does, and ValueError where val/ has other classes than train/.
    """
    from torchvision.datasets import ImageFolder

    class_folders(root)
    train, test = (ImageFolder(str(root / part)) for part in ("train", "val"))
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"train/ and val/ in {root} must hold the same class folders, and differ in {len(odd)} (as {odd[0]}): "
            "the validation pictures must lie in class folders too, not side by side"
        )
    labels = torch.tensor(train.targets)
    order = stratified_order(labels, SPLIT_SEED)
    held_out = max(1, len(order) // 50)

    def pictures(folder: Any, numbers: Tensor) -> Pictures:
        return Pictures(
            tuple(folder.samples[number][0] for number in numbers.tolist()), torch.tensor(folder.targets)[numbers]
        )

    return Splits(
        train=pictures(train, order[held_out:]),
        validation=pictures(train, order[:held_out]),
        test=pictures(test, torch.arange(len(test))),
    )


@functools.cache
def names_fingerprint(root: Path) -> str:
    """Fingerprint of the file names in train, validation and test, in order, and of the byte sizes in test."""
    splits = load(root)
    parts = [part for part in (splits.train, splits.validation, splits.test) if isinstance(part, Pictures)]
    names = [Path(file).relative_to(root).as_posix() for part in parts for file in part.files]
    return fingerprint([*names, *(os.path.getsize(file) for file in parts[-1].files)])


STEPS_A_PASS = 1_255_545 // 8 // 32
"""Steps of a pass over the training part by 8 workers of batch 32."""


class ImageNet(Task):
    """Class folders of pictures under train/ and val/, and ResNet-50, or another `model` by name.

    `model`: see `models.build_model`. `data_dir`: the folder that holds train/ and val/.
    """

    name = "imagenet"
    description = "ImageNet-1k or any folder like it, ResNet-50 or --model: days on GPUs; needs the data in --data-dir"
    model_name = "resnet50"
    classes = 1000
    batch_size = 32
    study_defaults: ClassVar = {  # paper, section 5.2: 120 epochs, 5 of warm-up, cosine
        "steps": 120 * STEPS_A_PASS,
        "warmup_steps": 5 * STEPS_A_PASS,
        "schedule": "cosine",
        "weight_decay": 1e-4,
        "lrs": (0.025, 0.05, 0.1),
        "ratios": (32.0, 256.0, 1024.0),
        "evaluations": 24,
    }

    def __init__(self, model: str = "", data_dir: str = "") -> None:
        self.model_name = model or self.model_name
        self.data_dir = Path(data_dir or DEFAULT_FOLDER).expanduser().absolute()
        # the model's size can be asked for before the data is there
        if (self.data_dir / "train").is_dir():
            self.classes = len(class_folders(self.data_dir))
        if model:
            check_model(model, self.classes, SIDE)

    def model(self) -> nn.Module:
        return build_model(self.model_name, self.classes)

    def splits(self) -> Splits:
        return load(self.data_dir)

    def constant_loss(self) -> float:
        return math.log(self.classes)

    def content_hash(self) -> str:
        """Of the names of all files and the sizes of those in val/, for reading 150 GB would take hours."""
        return names_fingerprint(self.data_dir)
