"""A task of one's own that has two accidents: one in the first trial of all, one in rank 1 of the first real trial."""

import os
import pathlib

import torch.distributed as dist

from cser_ray.tasks.digits import Digits


def once(name):
    try:
        os.close(os.open(pathlib.Path(__file__).parent / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    raise RuntimeError(f"an accident in the {name} trial")


class Fragile(Digits):
    name = "fragile"

    def model(self):
        if not dist.is_initialized():
            once("virtual")
        elif dist.get_rank() == 1:
            once("real")
        return super().model()
