"""Everything that exists before the first step: tokenizer, texts, network and process."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint.text_model import PROCESSES, TextModel, build_process
from data import batching
from data.corpus import holds_pairs, training_source
from data.pairs import PairArgs, PairFormat, load_pairs
from data.row_formats import TextFormat, load_texts
from data.splits import DataArgs
from data.streaming import StreamedBatches, load_stream
from data.tokenized_text import Text
from data.tokenizers import LEARNT, learn_tokenizer, load_tokenizer, vocabulary_size
from data.word_counts import read_word_freq
from models.denoiser import NetworkDenoiser
from models.factory import build_denoiser
from models.networks import NetworkArgs
from training.config import TrainConfig
from training.output_folder import TOKENIZER
from training.plan import Plan
from training.resume import Start
from utils import distributed
from utils.errors import UserError

OF_NO_NETWORK = {"_name_or_path", "initialized_from", "transformers_version", "dtype", "torch_dtype", "architectures"}
"""Entries of a configuration that say nothing of what it computes."""
LEARNT_SIZE = 8192
"""Entries of a learnt vocabulary, unless --vocab_size is given."""


def prepare(config: TrainConfig, device: torch.device, start: Start) -> tuple[TextModel, Text, Text]:
    """Return the model, the training text and the validation text."""
    config.check(device)
    run, data = config.run, config.data
    training_source(data.train_data)  # a misspelt path is reported before anything of the tokenizer is
    with distributed.leader_first():
        earlier = Path(run.output_dir) / TOKENIZER if start.path else None
        tokenizer = load_or_learn_tokenizer(data, config.network, earlier)
        train_text, valid_text, pairs = load_data(config, tokenizer)
    denoiser = prepare_network(config, tokenizer)
    counts = count_words(config, train_text, tokenizer, denoiser.vocab_size, of_pairs=pairs is not None)
    process = build_process(
        config.process,
        counts,
        tokenizer,
        denoiser.vocab_size,
        of_pairs=pairs is not None,
        text_format=config.text,
        fused_loss=run.fused_loss,
    )
    config.text.check_process(token_dependent=process.token_dependent)
    histogram = np.bincount(train_text.target_lengths).tolist()
    model = TextModel(
        denoiser, process, tokenizer, counts, histogram, data.max_length, pairs=pairs, text_format=config.text
    )
    return model.to(device), train_text, valid_text


def prepare_network(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> NetworkDenoiser:
    """Return the denoiser that the settings describe.

    Raises:
        UserError: if it cannot be built, or is too short for the text.
    """
    torch.manual_seed(config.run.seed)
    denoiser = build_denoiser(
        config.network,
        tokenizer,
        config.process.time_period,
        causal=PROCESSES[config.run.process].causal,
        embedding_settings=config.process.network_settings,
    )
    if config.data.max_length > denoiser.max_length:
        raise UserError(
            f"max_length={config.data.max_length} is more than the {denoiser.max_length} positions of "
            f"{config.network.model_name_or_path}; lower it"
        )
    denoiser.pack_rows(config.data.max_length if config.data.packing else 0)
    return denoiser


def count_words(
    config: TrainConfig, train_text: Text, tokenizer: PreTrainedTokenizerBase, vocab_size: int, *, of_pairs: bool
) -> Tensor:
    """Return how often each token is a target, int64 [V]: from --word_freq_file, or counted in the training text."""
    if not config.data.word_freq_file:
        with distributed.leader_first():
            return train_text.counts(vocab_size)
    counts = read_word_freq(Path(config.data.word_freq_file), tokenizer, vocab_size)
    return train_text.with_special_counts(counts) if of_pairs or config.text.whole_rows else counts


def load_data(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Text, Text, PairFormat | None]:
    """Return training and validation data; of pairs also how they are written.

    Raises:
        UserError: if a setting of pairs is given for text, or one of streams for pairs.
    """
    data = config.data
    if holds_pairs(training_source(data.train_data), streaming=data.streaming):
        if data.streaming:
            raise UserError(f"{data.train_data} holds pairs; streaming is for text, leave it out")
        if config.text != TextFormat():
            raise UserError(f"{data.train_data} holds pairs; row_format and detokenizer are for text, leave them out")
        return load_pairs(data, config.pairs, tokenizer)
    if config.pairs != PairArgs():
        raise UserError(f'{data.train_data} holds text; prompt and target_window are for pairs ("src" and "trg")')
    if data.streaming:
        return *load_stream(data, tokenizer, config.run.eval_sequences), None
    causal = PROCESSES[config.run.process].causal
    return *load_texts(data, tokenizer, config.text, causal=causal), None


def load_or_learn_tokenizer(data: DataArgs, network: NetworkArgs, earlier: Path | None) -> PreTrainedTokenizerBase:
    """Return the named tokenizer, or one learnt from the training text: by an `earlier` part of the run, if any."""
    learnt = data.tokenizer in LEARNT
    if learnt and data.streaming and training_source(data.train_data).hub_name:
        raise UserError(f"tokenizer={data.tokenizer} would download all of a hub's stream; give a tokenizer")
    if learnt and earlier:  # learnt again, it might break ties otherwise
        return load_tokenizer(str(earlier))
    if learnt:
        source, size = training_source(data.train_data), data.vocab_size or LEARNT_SIZE
        return learn_tokenizer(data.tokenizer, source, size, data.cache_dir, strip_accents=data.strip_accents)
    tokenizer = load_tokenizer(data.tokenizer or network.model_name_or_path)
    if data.vocab_size not in (0, known := vocabulary_size(tokenizer)):
        raise UserError(f"vocab_size={data.vocab_size}, but the tokenizer has {known} tokens; leave it out")
    return tokenizer


def open_batches(
    config: TrainConfig, plan: Plan, text: Text, tokenizer: PreTrainedTokenizerBase
) -> batching.BatchStream:
    """Open the stream that the steps take their batches from, at the position of the run."""
    position, seed, parts = plan.start.facts.get("position"), config.run.seed, plan.parts
    rank, world_size = distributed.rank(), distributed.world_size()
    if config.data.streaming:
        return StreamedBatches(text, seed=seed, parts=parts, rank=rank, world_size=world_size, position=position)
    return batching.EpochBatches(
        text,
        config.data,
        tokenizer,
        seed=seed,
        parts=parts,
        rank=rank,
        world_size=world_size,
        position=tuple(position or (0, 0)),
    )


def identities(model: TextModel, train_text: Text, valid_text: Text) -> dict[str, str]:
    """Return names for what must not change under a run, besides its settings: texts, word counts and network."""
    counts = hashlib.blake2b(model.token_counts.numpy().tobytes(), digest_size=12).hexdigest()
    settings = model.denoiser.network.config.to_dict()
    kept = {key: value for key, value in settings.items() if key not in OF_NO_NETWORK and "attn" not in key}
    network = hashlib.blake2b(json.dumps(kept, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
    return {"data": train_text.identity, "valid_data": valid_text.identity, "word_freq": counts, "network": network}


def identities_before(train_text: Text, valid_text: Text) -> dict[str, str]:
    """Return the names that the same texts had in runs begun before their content alone decided."""
    return {"data": train_text.legacy_identity(), "valid_data": valid_text.legacy_identity()}
