"""arguments.py: settings that are out of range or contradict each other are refused by name."""

import math

import pytest

from training.arguments import TrainArgs
from utils.errors import UserError

BELL = {"time_sampling": "bell"}


@pytest.mark.parametrize(
    "settings",
    [
        {"output_dir": " "},
        *({"max_steps": value} for value in (-1, 10**13)),
        *({"num_train_epochs": value} for value in (0, 1e7, math.nan)),
        *({name: 0} for name in ("accumulation_steps", "eval_step_size", "logging_steps", "keep_last")),
        *({"max_minutes": value} for value in (-1.0, math.inf, math.nan)),
        *({"save_minutes": value} for value in (0.0, math.inf, math.nan)),
        *({"warm_start": value} for value in (-0.1, 1.1, math.nan)),
        *({"bell": value, **BELL} for value in ("", "0.5", "1.1,0.2", "0.5,0.01", "nan,0.2", "0.5,nan")),
        *({"bell_share": value, **BELL} for value in (0.0, 1.1, math.nan)),
        {"bell_share": 0.4, "warm_start": 0.4, **BELL},
        {"bell": "0.4,0.2"},
        {"bell_share": 0.5},
        {"time_sampling": "early"},
        *({"warm_start_rates": value} for value in ("", "0.1", "0.5,0.1", "0,0.4", "0.1,1.1", "nan,0.4")),
        {"seed": 2**63},
        {"precision": "int8"},
        {"fp16": True, "precision": "bf16"},
        {"overwrite": True, "resume": "true"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        TrainArgs(**{"output_dir": "x", **settings})


def test_warm_start_rates_are_parsed_as_two_numbers() -> None:
    assert TrainArgs("x", warm_start_rates="0.25, 1").rates == (0.25, 1.0)
