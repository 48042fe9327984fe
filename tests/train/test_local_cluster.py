"""The local cluster that a command starts is nobody else's."""

import subprocess
import sys

import pytest

from cser_ray.bench.hosts.ray_session import session
from tests.ray_nodes import gone

PROGRAM = """
import urllib.error, urllib.request
from cser_ray.train import cluster
cluster.connect(num_cpus=1)
import ray
url = ray._private.worker._global_node.webui_url
assert url.startswith("127.0.0.1:"), url
try:
    urllib.request.urlopen(f"http://{url}/api/jobs/", timeout=10)
except urllib.error.HTTPError as refused:
    print("answered", refused.code)
"""


@pytest.mark.ray
def test_it_asks_for_a_token_and_listens_on_loopback() -> None:
    """Whoever has no token is refused by Ray's dashboard, which takes jobs; and it ends with its program."""
    with session() as (base, environment):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=100
        )
        assert gone(base)
    assert done.stdout.strip() == "answered 401", done.stderr
