"""Which text is trained on and which is held out: files of the corpus's own, or a share of its sentences."""

from dataclasses import replace

from corpus import (
    Keep,
    Source,
    announce,
    find_source,
    held_out,
    holds_pairs,
    overlap,
    read_records,
    say_once,
    smallest_part,
    training_source,
)
from dataloader import DataArgs
from process import UserError


def split_sources(args: DataArgs) -> tuple[tuple[Source, str, Keep | None], tuple[Source, str, Keep | None]]:
    """Where training and validation text come from: each its source, a name for the part, and what to take of it.

    Raises:
        UserError: if there is neither validation text nor anything to hold out.
    """
    train = training_source(args.train_data)
    valid = find_source(args.valid_data or args.train_data, "valid")
    if args.valid_data and valid is None:
        valid = training_source(args.valid_data)
    if valid is not None:
        return (train, "train", None), (valid, "valid", None)
    aside, share = _aside(train, args)
    return (train, f"train without {share}", lambda text: not aside(text)), (train, f"held-out {share}", aside)


def _aside(train: Source, args: DataArgs) -> tuple[Keep, str]:
    """What is held out of a training text, and a name for it: a share by hash, of a few sentences one at least."""
    aside, share = held_out(args.valid_fraction), f"{args.valid_fraction:g}"
    if args.streaming:  # looks for itself, and not through all of it
        return aside, share
    given = replace(train, column="src") if holds_pairs(train) else train
    found = set()
    for text, _ in read_records(given, description="looking"):  # a hundred or so tell, of all but the smallest
        found.add(aside(text))
        if len(found) == 2:
            return aside, share
    few = smallest_part((text for text, _ in read_records(given, description="looking")), args.valid_fraction)
    if few is None:
        raise UserError(f"{train}: one text, or all the same, so none can be held out; give more, or --valid_data")
    return few, f"{share} of few"


def say_what_was_read(args: DataArgs, train: Source, valid: Source) -> None:
    """Say on stderr which files are trained and validated on, and whether they are the same; of files alone.

    Args:
        args: the settings.
        train: where the training text was read.
        valid: where the validation text was.
    """
    if not train.files and not valid.files:
        return
    aside = not args.valid_data and (train.files, train.hub_name) == (valid.files, valid.hub_name)
    announce({"train": train, "valid": f"{args.valid_fraction:g} of it, held out" if aside else valid})
    if not aside and (same := overlap(train, valid)):
        say_once(f"note: {same} is training text and validation text: the bound says nothing of other text")
