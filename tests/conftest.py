"""One thread a process: on few cores, threads that wait for each other cost more than small tensors gain.

And what the tests of the store share: a new study on a disk.
"""

import pytest
import torch

from cser_ray.store import Store
from tests.store_rows import STUDY

torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A bare `pytest` on a machine without a GPU leaves out what `make test` deselects."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture
def local(tmp_path):
    """A store with a study and no rows."""
    store = Store(str(tmp_path / "results"))
    store.write_study(STUDY)
    return store
