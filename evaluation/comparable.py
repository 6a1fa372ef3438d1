"""What makes figures or samples no measure of what a checkpoint has learnt: texts read otherwise, or longer."""

from checkpoint.text_model import TextModel
from data.row_formats import RowFormat
from data.tokenized_text import Text
from utils.messages import note

SINGLE = ("unpadded", "padded")
"""Protocols with a text a row."""
WHY = {
    "protocol": "the figures are no measure of what it has learnt, and not comparable with its training's",
    "detokenizer": "the figures are not comparable with its training's",
}


def trained_form(run: TextModel) -> RowFormat:
    """How the training text was read, whatever the run has been told since."""
    return RowFormat(run.trained_on or run.form.protocol, run.trained_detokenizer or run.form.detokenizer)


def longest_trained(run: TextModel) -> int | None:
    """Tokens of the longest text in training, without its ends; None where rows were blocks, or it is not known."""
    protocol, histogram = trained_form(run).protocol, run.length_histogram
    if run.pairs or protocol not in SINGLE or sum(histogram) <= 1:  # that of imported weights holds one
        return None
    ends = (2 - run.causal) * (protocol == "padded")
    return max(n for n, count in enumerate(histogram) if count) - ends


def other_than_trained(run: TextModel, text: Text) -> list[str]:
    """Notes on why the figures of a text are not comparable with those of the training."""
    notes, trained, longest = [], trained_form(run), longest_trained(run)
    for name, why in WHY.items():
        own, its = getattr(run.form, name), getattr(trained, name)
        if own != its and not run.pairs:
            notes.append(f"{name}={own}, but the checkpoint was trained with {name}={its}: {why}")
    if longest is not None and run.form.protocol in SINGLE:
        longer = int((getattr(text, "text", text).lengths > longest).sum())  # the text in padded rows
        if longer:
            notes.append(f"{longer:,} of {len(text):,} texts are longer than any in training ({longest} tokens)")
    return notes


def warn_of_length(run: TextModel, length: int) -> None:
    """Say on stderr if a text of so many tokens can be written, but is longer than any that the model has seen."""
    longest = longest_trained(run)
    if longest is not None and longest < length <= run.denoiser.max_length - 2:
        note(f"{length} tokens are more than any text in training has ({longest}); the model has not learnt such texts")
