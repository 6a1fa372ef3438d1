"""device.py: devices, threads and precisions; freed memory is kept for the next tensor."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from utils.device import CACHED_KERNELS, autocast, pick_device, pick_precision, set_up_cpu
from utils.errors import UserError


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.slow
def test_memory_of_a_large_tensor_is_kept_for_the_next_one() -> None:
    """A separate process creates 20 tensors of 64 MiB in turn and counts the page faults."""
    program = """
import resource
import sys

import torch

from utils.device import set_up_cpu

if sys.argv[1] == "kept":
    set_up_cpu(1)
for _ in range(5):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", program, how], cwd=ROOT, capture_output=True, text=True).stdout)
        for how in ("kept", "as it was")
    }
    assert faults["kept"] * 2 < faults["as it was"]


def test_few_matrix_products_are_remembered_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = CACHED_KERNELS
    for given, expected in ((None, "64"), ("7", "7")):
        monkeypatch.delenv(name, raising=False)
        if given:
            monkeypatch.setenv(name, given)
        set_up_cpu(1)
        assert os.environ[name] == expected


def test_an_explicit_precision_is_kept_and_auto_is_fp32_or_bf16() -> None:
    cpu = torch.device("cpu")
    assert [pick_precision(p, cpu) for p in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert pick_precision("auto", cpu) in ("fp32", "bf16")
    with autocast(cpu, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(cpu, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_devices_and_threads_that_do_not_exist_are_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("gpu9", "cuda:99"):
        with pytest.raises(UserError, match=f"device='{name}' cannot be used here"):
            pick_device(name)
    with pytest.raises(UserError, match="threads=-1"):
        set_up_cpu(-1)
