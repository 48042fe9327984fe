"""One thread a process: on few cores, threads that wait for each other cost more than small tensors gain.

No example of a property has a deadline: how long it takes says how busy the machine is. And what the tests of the store
share: a new study on a disk.
"""

import pytest
import torch
from hypothesis import settings

from cser_ray.store.write import Store
from tests.store_rows import STUDY

torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with Ray's slow tests first: only short ones are left at the end, and no process waits for the other's."""
    slow = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def local(tmp_path):
    """A store with a study and no rows."""
    store = Store(str(tmp_path / "results"))
    store.write_study(STUDY)
    return store
