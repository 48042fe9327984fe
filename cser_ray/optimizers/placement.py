"""Where an optimizer's workers are: which of them live in this process, stacked how, and how they reach the others."""

from dataclasses import dataclass, field

from torch import Tensor

from cser_ray.communication.communicator import Communicator


@dataclass(frozen=True)
class Placement:
    """The rows that an optimizer's parameters hold, and the way between workers. By default a worker a process.

    Args:
        communicator: reaches the other workers, and says how many live here. By default one worker in this process, and
            the others in those of torch's default process group, if there is one.
        seeds: of the blocks that compressors draw; one for each run, where several runs are stacked.
        stacked: whether parameters carry a leading axis of rows = runs * workers, as those of `cser_ray.virtual` do.
        plain: where they are stacked, whether the parameters of the only row are a module's own, without that axis; all
            other tensors have it.

    Raises:
        ValueError: for several rows in parameters that are not stacked, or are plain.

    >>> Placement(Communicator(workers=4, group=None), seeds=(1, 2), stacked=True).rows
    8
    """

    communicator: Communicator = field(default_factory=Communicator)
    seeds: tuple[int, ...] = (0,)
    stacked: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        if (self.plain or not self.stacked) and self.rows > 1:
            raise ValueError(
                f"{self.rows} rows (stacked runs x workers) in one process need parameters stacked on axis 0"
            )

    @property
    def rows(self) -> int:
        """Stacked runs times the workers that live in this process."""
        return len(self.seeds) * self.communicator.workers

    def shaped(self, buffer: Tensor) -> Tensor:
        """A buffer `[rows, d]` as `[w, d]`, or `[runs, w, d]` when stacked: a view."""
        return buffer.view(len(self.seeds), self.communicator.workers, -1) if self.stacked else buffer
