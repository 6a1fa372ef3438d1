"""distributed.py: environment, collective operations and order, with real processes."""

import os
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_sum_over_ranks_adds_the_tensors_of_all_processes() -> None:
    """Each of two real processes under torch.distributed adds its own number."""
    program = (
        "import torch\n"
        "from utils import distributed, job\n"
        "with distributed.process_group(torch.device('cpu')):\n"
        "    x = torch.tensor([float(job.rank() + 1)])\n"
        "    distributed.sum_over_ranks(x)\n"
        "    assert x.item() == 3, x\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **address, "RANK": str(rank)},
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
