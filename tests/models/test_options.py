"""options.py: settings of the network that contradict each other are refused; its architectures exist."""

import pytest

from models.networks import PRESETS
from models.options import ARCHITECTURES, NetworkArgs
from utils.errors import UserError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dropout": 1.0}, "dropout=1.0 must lie in"),
        ({"lora_rank": 5000}, "lora_rank=5000 must lie in 0..4096"),
        ({"merge_lora": True}, "lora_targets and merge_lora are for lora_rank above 0"),
        ({"lora_rank": 4, "from_scratch": True}, "lora_rank=4 adapts a whole pretrained network; leave from_scratch"),
        ({"first_layers": -1}, "first_layers=-1 must lie in 0..1000"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        NetworkArgs(**given)


def test_the_named_architectures_are_those_that_can_be_made() -> None:
    assert tuple(PRESETS) == ARCHITECTURES
