"""arguments.py: settings that cannot be are refused with their bounds; the methods are those of the commands."""

import pytest

from modular_prompts.arguments import (
    SEARCHES,
    TUNING,
    BlackBoxArgs,
    FewShotArgs,
    FrozenArgs,
    PoolArgs,
    PredictArgs,
    PretrainArgs,
    RoutersArgs,
    RunArgs,
    TuneArgs,
)
from modular_prompts.few_shot_run import BY_GRADIENT, BY_SCORES
from utils.errors import UserError


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (FrozenArgs, {"model_name_or_path": " "}, "model_name_or_path is empty"),
        (FrozenArgs, {"model_name_or_path": "x", "readout": "guess"}, "readout='guess'"),
        (PoolArgs, {"num_modules": 0}, "num_modules=0 must lie in 1..10000"),
        (PoolArgs, {"prompt_length": 0}, "prompt_length=0 must lie in 1..10000"),
        (PretrainArgs, {"prompt_rate": 0.0}, "prompt_rate=0.0 must be above 0, and at most 1000"),
        (PretrainArgs, {"router_rate": float("nan")}, "router_rate=nan must be above 0"),
        (RunArgs, {"output_dir": ""}, "output_dir is empty"),
        (RunArgs, {"output_dir": "x", "save_minutes": 0.0}, "save_minutes=0.0 must lie in"),
        (FewShotArgs, {"prompts": "x", "output_dir": "y", "seeds": "1,a"}, "seeds=1,a: must be whole numbers by comma"),
        (FewShotArgs, {"prompts": "x", "output_dir": "y", "seeds": "1,1"}, "seeds=1,1: must be different"),
        (FewShotArgs, {"prompts": "x", "output_dir": "y", "shots": 0}, "shots=0 must lie in"),
        (TuneArgs, {"router_rate": -1.0}, "router_rate=-1.0 must be above 0"),
        (TuneArgs, {"lora_rank": 0}, "lora_rank=0 must lie in 1..4096"),
        (BlackBoxArgs, {"calls": 10, "population": 10}, "population=10 must be below calls=10"),
        (
            PredictArgs,
            {"prompts": "x", "task": "t", "data": "d", "output": "a.txt"},
            "output=a.txt: must end in",
        ),
        (RoutersArgs, {"prompts": "x", "picture": "a.jpg"}, "picture=a.jpg: must end in .png"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(kind: type, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**given)


def test_the_named_methods_are_those_of_the_commands() -> None:
    assert list(BY_GRADIENT) == list(TUNING) and list(BY_SCORES) == list(SEARCHES)


def test_all_layers_have_prompts_unless_fewer_are_wanted() -> None:
    assert PoolArgs().shape(6, 32).num_layers == 6 and PoolArgs(num_layers=1).shape(6, 32).num_layers == 1
    with pytest.raises(UserError, match="num_layers=7: the network has 6; give at most these, or 0 for all"):
        PoolArgs(num_layers=7).shape(6, 32)


def test_each_stage_has_its_settings() -> None:
    stages = TuneArgs(router_steps=1, prompt_steps=2, network_steps=3, lora_rate=0.5, batch_size=4, lora_rank=5).stages
    steps = [stage.steps for stage in (stages.router, stages.prompt, stages.network, stages.adapter)]
    assert steps == [1, 2, 3, 3] and stages.adapter.learning_rate == 0.5 and stages.rank == 5
    assert stages.router.batch_size == 4 == stages.adapter.batch_size
    searches = BlackBoxArgs(calls=30, code_calls=40, sigma=2.0).stages
    assert (searches.search_router.calls, searches.search_code.calls, searches.search_router.sigma) == (30, 40, 2.0)
