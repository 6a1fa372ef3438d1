"""Notes where results are not comparable with the training: another text format, or longer texts."""

from checkpoint.model_parts import ModelParts
from data.tokenized_text import Text
from utils.messages import note

REASONS = {
    "row_format": "the figures do not measure what it learned, and are not comparable with its validation figures",
    "detokenizer": "the figures are not comparable with its validation figures",
}


def longest_trained(model: ModelParts) -> int | None:
    """Return the tokens of the longest training text without special tokens; None for blocks, or if unknown."""
    trained, histogram = model.trained_format, model.length_histogram
    if model.pairs or not trained.single or sum(histogram) <= 1:  # imported weights have a histogram of one text
        return None
    ends = (2 - model.causal) * (trained.row_format == "padded")
    return max(n for n, count in enumerate(histogram) if count) - ends


def comparability_notes(model: ModelParts, text: Text) -> list[str]:
    """Explain why the figures of a text are not comparable with those of the training; empty if they are."""
    notes, trained, longest = [], model.trained_format, longest_trained(model)
    for name, reason in REASONS.items():
        scored_with, trained_with = getattr(model.text_format, name), getattr(trained, name)
        if scored_with != trained_with and not model.pairs:
            notes.append(f"{name}={scored_with}, but the checkpoint was trained with {name}={trained_with}: {reason}")
    if longest is not None and model.text_format.single:
        longer = int((text.text_lengths > longest).sum())
        if longer:
            notes.append(f"{longer:,} of {len(text):,} texts are longer than all training texts ({longest} tokens)")
    return notes


def warn_if_longer_than_trained(model: ModelParts, length: int) -> None:
    """Note on stderr if `length` tokens fit the network but exceed all training texts."""
    longest = longest_trained(model)
    if longest is not None and longest < length <= model.denoiser.max_length - 2:
        note(f"{length} tokens exceed the longest training text ({longest}); the model has not learned such lengths")


def order_notes(model: ModelParts) -> list[str]:
    """Explain the time input of sampler=ordered, if the network has one."""
    if not model.denoiser.time_conditioned:
        return []
    return ["the network has a time input: it gets the time at which as many tokens are masked on average"]
