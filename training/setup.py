"""Everything that exists before the first step: tokenizer, texts, network and process."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import transformers

from checkpoint.text_model import PROCESSES, TextModel, build_process
from data import batching
from data.corpus import holds_pairs, training_source
from data.pairs import PairArgs, PairFormat, load_pairs
from data.row_formats import RowFormat, load_texts
from data.splits import DataArgs
from data.streaming import StreamedBatches, load_stream
from data.tokenized_text import Text
from data.tokenizers import LEARNT, learn_tokenizer, load_tokenizer, vocabulary_size
from data.word_counts import read_word_freq
from models.factory import build_denoiser
from models.networks import BertArgs
from training import resume
from training.config import Settings
from training.output_folder import TOKENIZER
from utils import distributed
from utils.device import pick_precision
from utils.errors import UserError

OF_NO_NETWORK = {"_name_or_path", "initialized_from", "transformers_version", "dtype", "torch_dtype", "architectures"}
"""Entries of a configuration that say nothing of what it computes."""


def identities(run: TextModel, train_text: Text, valid_text: Text) -> dict[str, str]:
    """What must not change under a run, besides its settings."""
    counts = hashlib.blake2b(run.token_counts.numpy().tobytes(), digest_size=12).hexdigest()
    config = {
        k: v for k, v in run.denoiser.network.config.to_dict().items() if k not in OF_NO_NETWORK and "attn" not in k
    }
    network = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
    return {"data": train_text.identity, "valid_data": valid_text.identity, "word_freq": counts, "network": network}


def identities_before(train_text: Text, valid_text: Text) -> dict[str, str]:
    """What the same texts were called by runs begun before their content alone decided."""
    return {"data": train_text.identity_before(), "valid_data": valid_text.identity_before()}


def prepare(settings: Settings, device: torch.device, start: resume.Start) -> tuple[TextModel, Text, Text]:
    """Tokenizer, texts, network and process: everything that exists before the first step."""
    args, data, _, network, noise, _, form = settings
    noise.check(
        fused_loss=args.fused_loss,
        warm_start=args.warm_start,
        packing=data.packing,
        time_conditioning=network.time_conditioning,
    )
    form.check(packing=data.packing, streaming=data.streaming, word_freq_file=data.word_freq_file)
    precision = "fp16" if args.fp16 else pick_precision(args.precision, device)
    for what, given in (("fp16", precision == "fp16"), ("muon", settings[5].optimizer == "muon")):
        if given and args.strategy == "fsdp" and distributed.world_size() > 1:
            raise UserError(f"strategy=fsdp does not go with {what}; use strategy=ddp, or bf16 and adamw")
    if data.streaming and not args.max_steps:
        raise UserError("streaming=true reads a text of unknown length; give max_steps")
    training_source(data.train_data)  # a misspelt path is said before anything of the tokenizer is
    with distributed.leader_first():
        tokenizer = load_or_learn_tokenizer(data, network, Path(args.output_dir) / TOKENIZER if start.path else None)
        train_text, valid_text, of_pairs = load_texts(settings, tokenizer)
    torch.manual_seed(args.seed)
    causal = PROCESSES[args.process].causal
    of_embeddings = getattr(noise, "network_settings", None)
    denoiser = build_denoiser(network, tokenizer, noise.time_period, causal=causal, of_embeddings=of_embeddings)
    if data.max_length > denoiser.max_length:
        raise UserError(
            f"max_length={data.max_length} is more than the {denoiser.max_length} positions of "
            f"{network.model_name_or_path}; lower it"
        )
    denoiser.pack_rows(data.max_length if data.packing else 0)
    if data.word_freq_file:
        counts = read_word_freq(Path(data.word_freq_file), tokenizer, denoiser.vocab_size)
        counts = train_text.with_ends(counts) if of_pairs or form.whole_rows else counts
    else:
        with distributed.leader_first():
            counts = train_text.counts(denoiser.vocab_size)
    words = {"of_pairs": of_pairs is not None, "form": form}
    process = build_process(noise, counts, tokenizer, denoiser.vocab_size, **words)
    form.check_process(flat=getattr(process, "flat", True))
    process.fused_loss = args.fused_loss
    histogram = np.bincount(train_text.target_lengths).tolist()
    run = TextModel(denoiser, process, noise, tokenizer, counts, histogram, data.max_length, {}, of_pairs, form)
    return run.to(device), train_text, valid_text


def load_data(
    settings: Settings, tokenizer: transformers.PreTrainedTokenizerBase
) -> tuple[Text, Text, PairFormat | None]:
    """Training and validation data; of pairs also how they are written.

    Raises:
        UserError: if a setting of pairs is given for text, or one of streams for pairs.
    """
    (args, data, pair_args), form = settings[:3], settings[-1]
    if holds_pairs(training_source(data.train_data), streaming=data.streaming):
        if data.streaming:
            raise UserError(f"{data.train_data} holds pairs; streaming is for text, leave it out")
        if form != RowFormat():
            raise UserError(f"{data.train_data} holds pairs; protocol and detokenizer are for text, leave them out")
        return load_pairs(data, pair_args, tokenizer)
    if pair_args != PairArgs():
        raise UserError(f'{data.train_data} holds text; prompt and target_window are for pairs ("src" and "trg")')
    if data.streaming:
        return *load_stream(data, tokenizer, args.eval_sequences), None
    causal = PROCESSES[args.process].causal
    return *load_texts(data, tokenizer, form, causal=causal), None


def load_or_learn_tokenizer(
    data: DataArgs, network: BertArgs, earlier: Path | None
) -> transformers.PreTrainedTokenizerBase:
    """The named tokenizer, or one learnt from the training text: by an `earlier` part of the run, if any."""
    learnt = data.tokenizer in LEARNT
    if learnt and data.streaming and training_source(data.train_data).hub_name:
        raise UserError(f"tokenizer={data.tokenizer} would download all of a hub's stream; give a tokenizer")
    if learnt and earlier:  # learnt again, it might break ties otherwise
        return load_tokenizer(str(earlier))
    if learnt:
        source = training_source(data.train_data)
        size = data.vocab_size or 8192
        return learn_tokenizer(data.tokenizer, source, size, data.cache_dir, strip_accents=data.strip_accents)
    tokenizer = load_tokenizer(data.tokenizer or network.model_name_or_path)
    if data.vocab_size not in (0, known := vocabulary_size(tokenizer)):
        raise UserError(f"vocab_size={data.vocab_size}, but the tokenizer has {known} tokens; leave it out")
    return tokenizer


def open_batches(
    text: Text,
    data: DataArgs,
    tokenizer: transformers.PreTrainedTokenizerBase,
    position: list | dict | None,
    shared: dict,
) -> batching.BatchStream:
    """What the steps are taken from, where it stood; `shared` says which of their batches are this process's."""
    if data.streaming:
        return StreamedBatches(text, position=position, **shared)
    return batching.DealtBatches(text, data, tokenizer, position=tuple(position or (0, 0)), **shared)
