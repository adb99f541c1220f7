"""Ranks: torch's own DistributedDataParallel, started by torchrun, on GPUs (nccl) or CPUs (gloo)."""

import ctypes
import logging
import os
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hear_jepa.device import choose_device
from hear_jepa.train.config import ComputeConfig

log = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of parameters in glibc's malloc.h


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks get the same answer."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def mean(self, value: Tensor) -> Tensor:
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def share(self, batch: int) -> slice:
        """This rank's crops of a batch that is spread over all ranks."""
        share = batch // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)


def is_main_rank() -> bool:
    """Whether this process is the first of torchrun's, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def start_ranks(config: ComputeConfig) -> Ranks:
    """Join the process group that torchrun announces, or run alone."""
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = choose_device(config.device, local_rank)
    if "RANK" not in os.environ:
        return Ranks(0, 1, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=2))  # the others wait while the main rank probes
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of a step for the next one.

    As glibc comes, it gives every large block back to the kernel, which clears its pages when they are asked for again:
    an eighth of a training step on a CPU. Elsewhere, and where the user tunes it by the environment, nothing changes.
    """
    tuned = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if tuned or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes


def stop_ranks() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def spread_over_cpu(config: ComputeConfig) -> bool:
    """Run this very command under torchrun with `cpu_ranks` processes, to its end; False where that is not asked for.

    The ranks tell themselves what stopped them. Raises SystemExit with the code of the first that failed, or with 128
    and the number of the signal, in place of torchrun's report.
    """
    cores = os.cpu_count() or 1
    ranks = min(config.cpu_ranks, cores)
    if ranks <= 1 or "RANK" in os.environ or choose_device(config.device).type != "cpu":
        return False
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(cores // ranks))
    log.info("starting %d ranks of %s threads", ranks, os.environ["OMP_NUM_THREADS"])
    command = ["-m", "hear_jepa.train", *sys.argv[1:]]
    try:
        torchrun.run(torchrun.parse_args(["--standalone", f"--nproc-per-node={ranks}", *command]))
    except SignalException as stopped:  # by then the ranks have saved their state, or said why not
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode  # of one that was killed: the signal, less than 0
        sys.exit(code if code > 0 else 128 - code)
    return True
