"""process_options.py: every process has settings by its name; those out of range are refused."""

import pytest

from checkpoint.model_parts import PROCESSES
from diffusion.masked.noise_schedules import SCHEDULES
from diffusion.process_options import NOISE, SETTINGS, D3pmArgs, MdlmArgs, ScoreArgs, SeddArgs, WordFreqArgs
from utils.errors import UserError


def test_every_process_has_settings_by_its_name() -> None:
    assert {name: kind.settings for name, kind in PROCESSES.items()} == SETTINGS


def test_the_named_noise_schedules_are_those_that_exist() -> None:
    assert tuple(SCHEDULES) == NOISE


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (WordFreqArgs, {"num_steps": 0}, r"num_steps=0 \(T\) must lie in 1..1000000"),
        (WordFreqArgs, {"word_freq_lambda": 11.0}, "word_freq_lambda=11.0 must lie in"),
        (WordFreqArgs, {"schedule": "linear", "num_steps": 20_000}, "schedule=linear underflows beyond 10000 steps"),
        (MdlmArgs, {"importance_sampling": True, "change_of_variables": True}, "exclude each other; give one"),
        (D3pmArgs, {"reconstruction_weight": -1.0}, "reconstruction_weight=-1.0 must lie in"),
        (SeddArgs, {"sampling_eps": 1.0}, "sampling_eps=1.0 must lie in"),
        (ScoreArgs, {"sigma_min": 20.0}, "sigma_min=20 must be below 18.75"),
    ],
)
def test_a_setting_out_of_range_is_refused(kind: type, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**given)


@pytest.mark.parametrize("name", ["ar", "score"])
def test_only_masked_processes_choose_their_times(name: str) -> None:
    given = {"time_conditioning": "none", "warm_start": 0.0, "packing": False, "fused_loss": False}
    SETTINGS[name]().check_training(**given, time_sampling="uniform")
    with pytest.raises(
        UserError, match=f"time_sampling=bell is for masked processes; leave it out with process={name}"
    ):
        SETTINGS[name]().check_training(**given, time_sampling="bell")


@pytest.mark.parametrize("chosen", ["importance_sampling", "change_of_variables"])
def test_mdlm_draws_its_times_in_one_way(chosen: str) -> None:
    given = {"time_conditioning": "none", "warm_start": 0.0, "packing": False, "fused_loss": False}
    with pytest.raises(UserError, match="time_sampling=bell excludes importance_sampling and change_of_variables"):
        MdlmArgs(**{chosen: True}).check_training(**given, time_sampling="bell")
