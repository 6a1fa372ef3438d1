"""network_config.py: bounds on the settings of a config.json."""

import pytest

from utils.errors import UserError
from utils.network_config import check_config


@pytest.mark.parametrize("value", [[], None, 3, "text"])
def test_a_configuration_must_be_an_object(value: object) -> None:
    with pytest.raises(UserError, match="must hold an object"):
        check_config(value, "somewhere")
