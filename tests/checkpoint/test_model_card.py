"""model_card.py: the README.md of a checkpoint has the hub's header, the commands to use it, its settings and facts."""

from dataclasses import replace

from transformers import BertTokenizerFast

from checkpoint.model_card import model_card
from data.pairs import PairFormat
from tests.checkpoint.test_folder import make_run


def test_a_model_card_holds_commands_settings_and_facts(tokenizer: BertTokenizerFast) -> None:
    run = make_run(tokenizer, "layerwise")
    card = model_card(run)
    assert card.startswith("---\nlibrary_name: transformers\n") and "`python predict.py --checkpoint DIR`" in card
    for row in ("| num_steps | 16 |", "| posterior | exact |", "| time_conditioning | layerwise |", "| step | 7 |"):
        assert f"\n{row}\n" in card
    assert "predict_downstream_condition.py" in model_card(replace(run, pairs=PairFormat("{src} > {trg}", 8)))
