"""digits: 8x8 handwritten digits from inside the scikit-learn wheel; it shows stability, seldom value.

Even workers that never communicate reach about 97 % here, so a method can fail on this task but hardly shine.
"""

import functools
import math

import torch
from torch import nn

from cser_ray.tasks.base import Splits, Task, TensorDataset
from cser_ray.tasks.mlp import batchnorm_mlp
from cser_ray.tasks.splitting import splits_fingerprint, stratified_order

SIZES = [1200, 240, 357]
"""Train, validation and test parts of the 1 797 images; 1 200 gives each of 8 workers 150."""
SPLIT_SEED = 1797


@functools.cache
def load() -> Splits:
    """Pixels divided by 16, then standardised by one mean and one deviation, those of the training pixels [N, 64].

    One pair for all pixels, as for the one channel of an image: some pixels are nearly always blank, and a deviation
    of their own would blow up the rare stroke there.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.from_numpy(data.data) / 16, torch.from_numpy(data.target).long()
    parts = torch.split(stratified_order(labels, SPLIT_SEED), SIZES)
    train = images[parts[0]]
    images = ((images - train.mean()) / train.std()).float()
    return Splits(*(TensorDataset(images[part], labels[part]) for part in parts))


class Digits(Task):
    """scikit-learn `load_digits`, split 1 200 / 240 / 357, and a BatchNorm MLP 64-64-64-10 (9 098 parameters)."""

    name = "digits"
    description = "8x8 handwritten digits, BatchNorm MLP of 9 098 parameters: seconds a run, shows stability, not value"
    model_name = "mlp-64-64-64-10"
    classes = 10
    batch_size = 16

    def model(self) -> nn.Module:
        return batchnorm_mlp(64, 64, 64, 10)

    def splits(self) -> Splits:
        return load()

    def constant_loss(self) -> float:
        return math.log(self.classes)

    def content_hash(self) -> str:
        return splits_fingerprint(load())
