"""description.py: process.json restores the description that was written."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import BertTokenizerFast

from checkpoint.description import Description
from checkpoint.folder import load_checkpoint, save_checkpoint
from diffusion.masked.word_freq_released import ReleasedWordFreqDiffusion
from diffusion.process_options import MdlmArgs
from tests.checkpoint.test_folder import CPU, make_run
from utils.errors import UserError


def test_the_posterior_can_be_chosen_on_loading(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run", make_run(tokenizer))
    loaded = load_checkpoint(str(tmp_path / "run"), CPU, posterior="released")
    assert isinstance(loaded.process, ReleasedWordFreqDiffusion)


@pytest.mark.parametrize("conditioning", ["none", "token"])
def test_a_written_description_is_read_back(tokenizer: BertTokenizerFast, tmp_path: Path, conditioning: str) -> None:
    described = Description.of(make_run(tokenizer, conditioning))
    described.write(tmp_path)
    assert Description.read(tmp_path) == described and described.time_conditioning == conditioning
    other_args = Description.read(tmp_path, posterior="released").process_args
    assert (other_args.posterior, described.process_args.posterior) == ("released", "exact")


def test_a_posterior_is_refused_for_other_processes(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    replace(Description.of(make_run(tokenizer)), process_args=MdlmArgs()).write(tmp_path)
    assert Description.read(tmp_path).process_args == MdlmArgs()
    with pytest.raises(UserError, match="posterior=released is for process=word_freq"):
        Description.read(tmp_path, posterior="released")
