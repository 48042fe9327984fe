"""torchft's DiLoCo as a peer, where torchft is installed: https://github.com/meta-pytorch/torchft.

Each rank is a replica group of its own, whose manager meets the others at a lighthouse on rank 0's host. Heartbeats and
quorums travel over the shaped link too. Its count of steps cannot be set, so that every step to a synchronisation is
taken. As in the paper, the outer optimizer is SGD with Nesterov momentum.
"""

import importlib.util
from datetime import timedelta

import torch
import torch.distributed as dist

from cser_ray.bench.hosts.namespaces import address_of
from cser_ray.bench.links.cases import Case
from cser_ray.bench.links.training import Training, local_step, peer_optimizer
from cser_ray.bench.workloads import Workload

PATIENCE = timedelta(seconds=300)


def installed() -> bool:
    """Whether torchft can be imported."""
    return importlib.util.find_spec("torchft") is not None


def torchft_diloco(case: Case, workload: Workload) -> Training:
    """DiLoCo with H = R_C inner steps, weights backed up on the device, gradients in fp32."""
    from torchft import Manager, ProcessGroupGloo, ProcessGroupNCCL
    from torchft.coordination import LighthouseServer
    from torchft.local_sgd import DiLoCo

    assert case.reset_interval
    rank, workers = dist.get_rank(), dist.get_world_size()
    lighthouse = LighthouseServer(bind="[::]:0", min_replicas=workers) if rank == 0 else None
    port = torch.tensor(
        [int(lighthouse.address().rpartition(":")[2]) if lighthouse else 0], device=workload.inputs.device
    )
    dist.broadcast(port, 0)
    address = address_of(rank)
    # kept until the end: the other ranks meet at it, and the manager holds its address alone
    stores = [dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)]  # type: ignore[attr-defined]
    manager = Manager(
        pg=ProcessGroupNCCL(PATIENCE) if workload.inputs.is_cuda else ProcessGroupGloo(PATIENCE),
        load_state_dict=None,
        state_dict=None,
        min_replica_size=workers,
        use_async_quorum=False,
        timeout=PATIENCE,
        quorum_timeout=PATIENCE,
        rank=0,
        world_size=1,
        store_addr=address,
        store_port=stores[0].port,
        lighthouse_addr=f"http://{address_of(0)}:{port.item()}",
        replica_id=f"rank{rank}",
        hostname=address,
        init_sync=False,  # all start from the same model
    )
    model = workload.fresh()
    workload.record(model)
    inner = peer_optimizer(case, model)
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    diloco = DiLoCo(
        manager, [model], inner, outer, sync_every=case.reset_interval, backup_device=workload.inputs.device,
        use_bucketization=True,
    )  # fmt: skip
    diloco.__enter__()

    def close() -> None:
        diloco.__exit__(None, None, None)
        manager.shutdown()
        if lighthouse:
            lighthouse.shutdown()
        stores.clear()

    return Training(local_step(workload, model, inner), interval=case.reset_interval, close=close)
