"""Runs a function in n processes joined by gloo: forked, so that it costs tenths of a second and takes closures."""

import faulthandler
import gc
import multiprocessing
import multiprocessing.connection
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def run_processes(n: int, function: Callable[[], T], timeout: float = 300.0, joined: bool = True) -> list[T]:
    """What `function()` returns in each of n processes, in order of rank; inside, the default group is n ranks of gloo.

    The processes are forks of this one: import everything before, and touch no CUDA. The first exception in any of them
    is raised here, with its rank in a note. Raises TimeoutError after `timeout` seconds; nothing outlives the call.

    With `joined=False` they are a program's own to join: it finds RANK and its like in the environment, as torchrun has it.
    """
    port = None if joined else free_port()
    context = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(n):
                here, there = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(
                    target=_child,
                    args=(rank, n, str(Path(folder) / "store"), function, there, timeout, port),
                    daemon=True,
                )
                process.start()
                there.close()
                processes.append(process)
                pipes.append(here)
            answers = _collect(processes, pipes, timeout)
        finally:
            for process, pipe in zip(processes, pipes, strict=True):
                process.kill()  # it has answered, or nobody will read its answer
                process.join()
                pipe.close()
    return answers


def _collect(processes: list[BaseProcess], pipes: list[Connection], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < len(pipes):
        waiting = [rank for rank in range(len(pipes)) if rank not in results]
        ready = multiprocessing.connection.wait(
            [pipes[rank] for rank in waiting], max(0.0, deadline - time.monotonic())
        )
        if not ready:
            raise TimeoutError(f"No answer from ranks {waiting} within {timeout} s")
        for rank in (rank for rank in waiting if pipes[rank] in ready):
            results[rank] = _answer(rank, processes[rank], pipes[rank])
    return [results[rank] for rank in range(len(pipes))]


def _answer(rank: int, process: BaseProcess, pipe: Connection) -> Any:
    try:
        good, value = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join(10.0)
        raise RuntimeError(f"Rank {rank} died without a word, with exit code {process.exitcode}") from None
    if not good:
        error, trace = value
        error.add_note(f"in the process of rank {rank}:\n{trace}")
        raise error
    return value


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


def _child(
    rank: int, n: int, store: str, function: Callable[[], object], pipe: Connection, timeout: float, port: int | None
) -> None:
    faulthandler.enable()  # where a process crashes, pytest shows in which line
    gc.freeze()  # what the test runner holds needs no look at, here or where all objects are searched for a wrapper
    torch.set_num_threads(1)  # a forked OpenMP pool would hang
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo asks the resolver for this host's name
    try:
        if port is None:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=n, timeout=timedelta(seconds=timeout)
            )
        else:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
        value = function()
        if dist.is_initialized():
            dist.barrier()  # nobody leaves while another still reads from it
        answer = pickle.dumps((True, value))
    except BaseException as error:
        answer = _failure(error)
    pipe.send_bytes(answer)
    pipe.close()
    time.sleep(timeout)  # the parent ends this process: no exit handler of the test runner may run here


def _failure(error: BaseException) -> bytes:
    trace = traceback.format_exc()
    try:
        answer = pickle.dumps((False, (error, trace)))
        pickle.loads(answer)  # an exception whose constructor takes other arguments fails only here
        return answer
    except Exception:
        return pickle.dumps((False, (RuntimeError(f"{type(error).__name__}: {error}"), trace)))
