"""SentencePiece: conversion of a .model file to a fast tokenizer with equal segmentation, and training of models.

The conversion is written by hand instead of using transformers' converter because the ids must equal SentencePiece's.
A model is a protocol buffer, so it contains no code. The BPE merges follow from the scores of its pieces. Missing
special tokens ([CLS] is its bos, [SEP] its eos) get ids after its own.
"""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.tokenizer_checks import MOST_GROWTH, check_entry, longest_replacement
from utils.errors import UserError
from utils.files import read_bytes
from utils.hub import first_line

SPACE = "▁"
DIGITS = [str(digit) for digit in range(10)]
MOST_PIECES = 10**6
MOST_SENTENCES = 5_000_000  # in the training of a model
BPE, UNIGRAM = 2, 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def load_sentencepiece(file: Path) -> PreTrainedTokenizerFast:
    """Load a BPE or unigram model as a fast tokenizer.

    Raises:
        UserError: if the file is not such a model.
    """
    model = proto.ModelProto()
    try:
        model.ParseFromString(read_bytes(file, 2**28))
    except DecodeError as error:
        raise UserError(f"tokenizer {file}: not a SentencePiece model ({first_line(error)})") from error
    check_model(model, f"tokenizer {file}")
    kind, unknown = model.trainer_spec.model_type, [p.piece for p in model.pieces if p.type == UNKNOWN]
    if kind not in (BPE, UNIGRAM) or len(unknown) != 1:
        raise UserError(f"tokenizer {file}: not a SentencePiece model of type bpe or unigram with one unknown piece")
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(f"tokenizer {file}: spaces as suffixes; train it without treat_whitespace_as_suffix")
    found = Tokenizer(bpe_model(model) if kind == BPE else unigram_model(model))
    found.normalizer, found.pre_tokenizer = normalizer(model), pre_tokenizer(model)
    found.decoder = decoder(model)
    return PreTrainedTokenizerFast(tokenizer_object=found, **special_tokens(model, unknown[0]))


def check_model(model: proto.ModelProto, name: str) -> None:
    """Check number and length of pieces, since the conversion tries all splits of every piece.

    Raises:
        UserError: with the number and its bound.
    """
    if len(model.pieces) > MOST_PIECES:
        raise UserError(f"{name}: {len(model.pieces):,} pieces, more than {MOST_PIECES:,}; give a smaller model")
    for piece in model.pieces:
        check_entry(piece.piece, name)
    growth = longest_replacement(model.normalizer_spec.precompiled_charsmap)
    if growth > MOST_GROWTH:
        raise UserError(f"{name}: it replaces one character by up to {growth:,}, more than {MOST_GROWTH}; give another")


def bpe_model(model: proto.ModelProto) -> models.BPE:
    """Build a BPE model: pairs of pieces that join to a piece, ordered by the score of the joined piece."""
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    pairs = (
        (-score, (piece[:cut], piece[cut:]))
        for piece, score in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    )
    merges = [pair for _, pair in sorted(pairs, key=lambda entry: entry[0])]
    unknown = next(piece.piece for piece in model.pieces if piece.type == UNKNOWN)
    fallback, whole = model.trainer_spec.byte_fallback, bool(long_symbols(model))
    return models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback, ignore_merges=whole)


def long_symbols(model: proto.ModelProto) -> list[str]:
    """Return user-defined symbols of several characters: no merge makes them, so they need `ignore_merges`."""
    return [piece.piece for piece in model.pieces if piece.type == USER_DEFINED and len(piece.piece) > 1]


def unigram_model(model: proto.ModelProto) -> models.Unigram:
    """Build a unigram model; a user-defined symbol scores as SentencePiece does, best piece score times bytes - 0.1."""
    best = max((piece.score for piece in model.pieces if piece.type == NORMAL), default=0.0)
    own = {p.piece: len(p.piece.encode()) * best - 0.1 for p in model.pieces if p.type == USER_DEFINED}
    scores = [(piece.piece, own.get(piece.piece, piece.score)) for piece in model.pieces]
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN)
    return models.Unigram(scores, unknown, byte_fallback=model.trainer_spec.byte_fallback)


def normalizer(model: proto.ModelProto) -> normalizers.Normalizer:
    """Build the normalizer: the model's character table, single spaces between words, a space before the first word."""
    spec, parts = model.normalizer_spec, []
    if spec.precompiled_charsmap:  # the library's Precompiled does not compose a letter with several marks
        parts.append(normalizers.NFC())
        parts.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        parts += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.normalizer_spec.add_dummy_prefix:
        parts.append(normalizers.Prepend(" "))
    return normalizers.Sequence(parts)


def pre_tokenizer(model: proto.ModelProto) -> pre_tokenizers.PreTokenizer:
    """Build the pre-tokenizer: split before words, unless pieces extend over several words.

    For BPE, user-defined symbols are isolated. Names of special pieces in a text are split, for unigram models and
    wherever `ignore_merges` would otherwise make them one token.
    """
    over_words = any(SPACE in piece.piece[1:] for piece in model.pieces if piece.type == NORMAL)
    parts = [pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=not over_words)]
    alone, unigram = [], model.trainer_spec.model_type == UNIGRAM
    if not unigram:
        own = sorted((piece.piece for piece in model.pieces if piece.type == USER_DEFINED), key=len, reverse=True)
        alone += [f"(?:{quoted(piece)})" for piece in own]
    if unigram or long_symbols(model):
        special = [piece.piece for piece in model.pieces if piece.type in (UNKNOWN, CONTROL, BYTE)]
        alone += [f"{quoted(piece[0])}(?={quoted(piece[1:])})" for piece in special if len(piece) > 1]
    if alone:
        parts.append(pre_tokenizers.Split(Regex("|".join(alone)), "isolated"))
    return pre_tokenizers.Sequence(parts)


def decoder(model: proto.ModelProto) -> decoders.Decoder:
    """Build the decoder, which removes the space before the first word."""
    parts = [decoders.ByteFallback()] if model.trainer_spec.byte_fallback else []
    parts += [decoders.Fuse(), decoders.Replace(SPACE, " ")]
    return decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * model.normalizer_spec.add_dummy_prefix)


def quoted(piece: str) -> str:
    """Return a regular expression that matches these characters literally."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in piece)


def special_tokens(model: proto.ModelProto, unknown: str) -> dict[str, str]:
    """Return the names of the special tokens, with default names for those that the model lacks."""
    spec, pieces = model.trainer_spec, [piece.piece for piece in model.pieces]
    ids = {"cls": spec.bos_id, "sep": spec.eos_id, "pad": spec.pad_id}
    lacking = {"cls": "<s>", "sep": "</s>", "pad": "<pad>"}
    control = {i for i, piece in enumerate(model.pieces) if piece.type == CONTROL}
    found = {f"{name}_token": pieces[i] if i in control else lacking[name] for name, i in ids.items()}
    found |= {"bos_token": found["cls_token"], "eos_token": found["sep_token"]}
    return {**found, "unk_token": unknown, "mask_token": "[MASK]"}


def train_sentencepiece(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Train a BPE model of `vocab_size` pieces with digits as separate pieces; return the file's content.

    Raises:
        UserError: if the text has too few different pieces.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(evenly_spaced(sentences, MOST_SENTENCES)),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            user_defined_symbols=DIGITS,
            max_sentence_length=2**20,
            minloglevel=2,
            bos_id=0,
            eos_id=1,
            pad_id=2,
            unk_id=3,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1].split("] ")[-1]
        raise UserError(f"vocab_size={vocab_size}: no SentencePiece model can be trained ({reason})") from error
    return written.getvalue()


def evenly_spaced(sentences: Iterable[str], most: int) -> list[str]:
    """Return at most `most` sentences at equal distances; SentencePiece itself would draw different ones each time."""
    kept, distance = [], 1
    for number, sentence in enumerate(sentences):
        if len(kept) == most:
            kept, distance = kept[::2], 2 * distance
        if number % distance == 0:
            kept.append(sentence)
    return kept
