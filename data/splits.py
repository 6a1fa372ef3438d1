"""Training and validation text: the corpus's own split, or a held-out share of its sentences."""

from dataclasses import replace

from data.corpus import (
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
from data.options import DataArgs
from data.tokenized_text import Text
from utils.errors import UserError


def split_sources(args: DataArgs) -> tuple[tuple[Source, str, Keep | None], tuple[Source, str, Keep | None]]:
    """Return (source, name of the part, selection of sentences) of the training text and of the validation text.

    Raises:
        UserError: if there is no validation text, and none can be held out.
    """
    names = args.column_names
    train = training_source(args.train_data, names)
    valid = find_source(args.valid_data or args.train_data, "valid", names)
    if args.valid_data and valid is None:
        valid = training_source(args.valid_data, names)
    if valid is not None:
        return (train, "train", None), (valid, "valid", None)
    is_held_out, share = _held_out_part(train, args)
    train_part = (train, f"train without {share}", lambda text: not is_held_out(text))
    return train_part, (train, f"held-out {share}", is_held_out)


def _held_out_part(train: Source, args: DataArgs) -> tuple[Keep, str]:
    """Return a held-out test and its name: a share by hash, and at least one sentence of a small text."""
    is_held_out, share = held_out(args.valid_fraction), f"{args.valid_fraction:g}"
    if args.streaming:  # a stream is not read in advance
        return is_held_out, share
    given = replace(train, column="src") if holds_pairs(train) else train
    found = set()
    for text, _ in read_records(given, description="looking"):  # about a hundred sentences, except in a small text
        found.add(is_held_out(text))
        if len(found) == 2:
            return is_held_out, share
    of_few = smallest_part((text for text, _ in read_records(given, description="looking")), args.valid_fraction)
    if of_few is None:
        raise UserError(f"{train}: all texts are equal, so none can be held out; give more text, or --valid_data")
    return of_few, f"{share} of few"


def say_what_was_read(args: DataArgs, train: Source, valid: Source) -> None:
    """Print on stderr the files of training and validation, and a note if they overlap; nothing for hub data sets.

    Args:
        args: the settings.
        train: source of the training text.
        valid: source of the validation text.
    """
    if not train.files and not valid.files:
        return
    from_train = not args.valid_data and (train.files, train.hub_name) == (valid.files, valid.hub_name)
    announce({"train": train, "valid": f"{args.valid_fraction:g} of train, held out" if from_train else valid})
    if not from_train and (same := overlap(train, valid)):
        say_once(f"note: {same} is training text and validation text, so the bound does not hold for new text")


def require_a_batch(train: Text, args: DataArgs) -> None:
    """Refuse a corpus that is smaller than one batch.

    Raises:
        UserError: with both numbers.
    """
    if args.by_slots and (tokens := int(train.widths.sum())) < args.slots:
        raise UserError(
            f"{args.train_data}: {tokens} training tokens do not fill one batch of {args.slots} slots; "
            "give more text or a smaller batch"
        )
    if not args.by_slots and len(train) < args.batch_size:
        raise UserError(
            f"{args.train_data}: {len(train)} training sentences are fewer than batch_size={args.batch_size}; "
            "give more text or a smaller batch"
        )
