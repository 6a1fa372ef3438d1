"""job.py: rank, world size and restarts are read from the environment, or refused."""

import pytest

from utils import job
from utils.errors import UserError


def test_numbers_in_the_environment_must_be_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text, read in (
        ("WORLD_SIZE", "abc", job.world_size),
        ("WORLD_SIZE", "0", job.world_size),
        ("TORCHELASTIC_RESTART_COUNT", "-1", job.restarts),
        ("SLURM_RESTART_COUNT", "x", job.started_again),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, text)
            with pytest.raises(UserError, match=f"{name}={text} in the environment must be a whole number"):
                read()
    monkeypatch.setenv("RANK", "5")  # without WORLD_SIZE it has no effect
    assert job.rank() == 0


def test_a_job_has_the_name_that_slurm_or_torchrun_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    assert job.name() == ""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun without --rdzv_id
    assert job.name() == ""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert job.name() == "17"


def test_a_script_of_one_process_is_refused_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE=2: a.py runs as one process; start it with python, not torchrun"):
        job.require_single("a.py")
