"""SentencePiece: a .model file as a fast tokenizer that cuts text as SentencePiece does, and models learnt from text.

A model is a protocol buffer, data and no program. Of its pieces BPE's merges follow by their scores. What the model
lacks of [CLS] (its bos), [SEP] (eos), [PAD] and [MASK] is added after its own ids.
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
IDS = {"bos_id": 0, "eos_id": 1, "pad_id": 2, "unk_id": 3}
MOST_PIECES = 10**6
MOST_SENTENCES = 5_000_000  # that a vocabulary is learnt from
BPE, UNIGRAM = 2, 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def load_sentencepiece(file: Path) -> PreTrainedTokenizerFast:
    """A BPE or unigram model.

    Raises:
        UserError: if the file is no such model.
    """
    model = proto.ModelProto()
    try:
        model.ParseFromString(read_bytes(file, 2**28))
    except DecodeError as error:
        raise UserError(f"tokenizer {file}: not a SentencePiece model ({first_line(error)})") from error
    check_model(model, f"tokenizer {file}")
    kind, unknown = model.trainer_spec.model_type, [p.piece for p in model.pieces if p.type == UNKNOWN]
    if kind not in (BPE, UNIGRAM) or len(unknown) != 1:
        raise UserError(f"tokenizer {file}: not a SentencePiece model of bpe or unigram pieces with one unknown")
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(f"tokenizer {file}: its spaces end words; train it without treat_whitespace_as_suffix")
    found = Tokenizer(merging(model) if kind == BPE else scoring(model))
    found.normalizer, found.pre_tokenizer = normalizer(model), splitter(model)
    found.decoder = decoder(model)
    return PreTrainedTokenizerFast(tokenizer_object=found, **special_tokens(model, unknown[0]))


def check_model(model: proto.ModelProto, name: str) -> None:
    """Refuse more or longer pieces than can be worked with: all cuts of every piece are tried.

    Raises:
        UserError: with both numbers.
    """
    if len(model.pieces) > MOST_PIECES:
        raise UserError(f"{name}: {len(model.pieces):,} pieces, more than the {MOST_PIECES:,} that it may have")
    for piece in model.pieces:
        check_entry(piece.piece, name)
    growth = longest_replacement(model.normalizer_spec.precompiled_charsmap)
    if growth > MOST_GROWTH:
        raise UserError(f"{name}: it makes up to {growth:,} characters of one, more than the {MOST_GROWTH} it may")


def merging(model: proto.ModelProto) -> models.BPE:
    """Pairs of pieces that make up a third are merged, the third of the best score first."""
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
    """User-defined symbols that no merging makes: what stands alone and is a piece must be taken as it is for them."""
    return [piece.piece for piece in model.pieces if piece.type == USER_DEFINED and len(piece.piece) > 1]


def scoring(model: proto.ModelProto) -> models.Unigram:
    """The likeliest pieces; user-defined symbols count as if every byte of theirs were the best of them."""
    best = max((piece.score for piece in model.pieces if piece.type == NORMAL), default=0.0)
    own = {p.piece: len(p.piece.encode()) * best - 0.1 for p in model.pieces if p.type == USER_DEFINED}
    scores = [(piece.piece, own.get(piece.piece, piece.score)) for piece in model.pieces]
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN)
    return models.Unigram(scores, unknown, byte_fallback=model.trainer_spec.byte_fallback)


def normalizer(model: proto.ModelProto) -> normalizers.Normalizer:
    """The model's own table of characters, no more spaces than one between words, and one before the first."""
    spec, parts = model.normalizer_spec, []
    if spec.precompiled_charsmap:  # the library's own step puts no letter together with more than one mark
        parts.append(normalizers.NFC())
        parts.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        parts += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.normalizer_spec.add_dummy_prefix:
        parts.append(normalizers.Prepend(" "))
    return normalizers.Sequence(parts)


def splitter(model: proto.ModelProto) -> pre_tokenizers.PreTokenizer:
    """Before words, unless pieces reach over them.

    Of BPE user-defined symbols stand alone. Special pieces are torn apart where a text has them, unless they need a
    merging that there is not.
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
    """Pieces to text, without the space that was put before it."""
    parts = [decoders.ByteFallback()] if model.trainer_spec.byte_fallback else []
    parts += [decoders.Fuse(), decoders.Replace(SPACE, " ")]
    return decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * model.normalizer_spec.add_dummy_prefix)


def quoted(piece: str) -> str:
    """A regular expression for just these characters."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in piece)


def special_tokens(model: proto.ModelProto, unknown: str) -> dict[str, str]:
    """Names of the special tokens; those the model lacks get one that it does not use."""
    spec, pieces = model.trainer_spec, [piece.piece for piece in model.pieces]
    ids = {"cls": spec.bos_id, "sep": spec.eos_id, "pad": spec.pad_id}
    lacking = {"cls": "<s>", "sep": "</s>", "pad": "<pad>"}
    control = {i for i, piece in enumerate(model.pieces) if piece.type == CONTROL}
    found = {f"{name}_token": pieces[i] if i in control else lacking[name] for name, i in ids.items()}
    found |= {"bos_token": found["cls_token"], "eos_token": found["sep_token"]}
    return {**found, "unk_token": unknown, "mask_token": "[MASK]"}


def train_sentencepiece(sentences: Iterable[str], vocab_size: int) -> bytes:
    """A BPE model of so many pieces, with digits as symbols of their own, as the file's content.

    Raises:
        UserError: if the text does not have so many.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(spread(sentences, MOST_SENTENCES)),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            user_defined_symbols=DIGITS,
            max_sentence_length=2**20,
            minloglevel=2,
            **IDS,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1].split("] ")[-1]
        raise UserError(f"vocab_size={vocab_size}: no SentencePiece model can be learnt ({reason})") from error
    return written.getvalue()


def spread(sentences: Iterable[str], most: int) -> list[str]:
    """At most so many sentences, at equal distances: SentencePiece itself would draw others in every process."""
    kept, distance = [], 1
    for number, sentence in enumerate(sentences):
        if len(kept) == most:
            kept, distance = kept[::2], 2 * distance
        if number % distance == 0:
            kept.append(sentence)
    return kept
