"""One thread a process: on few cores, threads that wait for each other cost more than small tensors gain.

And what the tests of the store share: a new study on a disk.
"""

import pytest
import torch

from cser_ray.store import Store
from tests.store_rows import STUDY

torch.set_num_threads(1)


@pytest.fixture
def local(tmp_path):
    """A store with a study and no rows."""
    store = Store(str(tmp_path / "results"))
    store.write_study(STUDY)
    return store
