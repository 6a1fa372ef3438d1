"""Preparation of a training run: tokenizer, texts, network and process."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint.adapter import Base, fingerprint
from checkpoint.model_parts import PROCESSES, ModelParts, build_process
from data import batching
from data.corpus import holds_pairs, training_source
from data.neighbours import neighbour_vectors
from data.options import DataArgs, PairArgs, TextFormat
from data.pairs import PairFormat, load_pairs
from data.row_formats import load_texts
from data.splits import split_sources
from data.streaming import StreamedBatches, StreamedText, load_stream
from data.tokenized_text import Text
from data.tokenizers import LEARNT, learn_tokenizer, load_tokenizer, vocabulary_size
from data.trimming import kept_ids, trim_tokenizer
from data.word_counts import information, read_word_freq
from diffusion.process import Process
from models.denoiser import NetworkDenoiser
from models.factory import build_denoiser
from models.lora import has_lora
from models.options import NetworkArgs
from training.arguments import TrainArgs
from training.config import TrainConfig
from training.output_folder import TOKENIZER
from training.plan import Plan
from training.resume import Start
from utils import distributed, job
from utils.errors import UserError
from utils.messages import warn
from utils.network_config import used_entries

MOST_OTHER = 0.05
"""Share of a tokenizer's tokens that may differ from those of a pretrained network without a warning."""
DEFAULT_VOCAB_SIZE = 8192
"""Size of a learnt vocabulary without --vocab_size."""


def prepare(config: TrainConfig, device: torch.device, start: Start) -> tuple[ModelParts, Text, Text]:
    """Return the model, the training text and the validation text."""
    config.check(device)
    run, data = config.run, config.data
    training_source(data.train_data)  # report a misspelt path before any tokenizer error
    with distributed.leader_first():
        earlier = Path(run.output_dir) / TOKENIZER if start.path else None
        tokenizer, rows = load_or_learn_tokenizer(data, config.network, config.text.detokenizer, earlier)
        train_text, valid_text, pairs = load_data(config, tokenizer)
    warn_of_other_vocabulary(config, tokenizer, rows)
    denoiser = prepare_network(config, tokenizer, rows)
    if config.network.embedding_start == "neighbours":
        denoiser.require_new_embeddings()
    counts = token_counts(config, train_text, tokenizer, denoiser.vocab_size, of_pairs=pairs is not None)
    process = build_process(
        config.process,
        counts,
        tokenizer,
        denoiser.vocab_size,
        of_pairs=pairs is not None,
        text_format=config.text,
        fused_loss=run.fused_loss,
    )
    if process.starts_at_unigram:
        predicted = process.predicted_counts(counts, len(train_text.target_lengths))
        denoiser.start_at_unigram(information(predicted))
    if config.network.embedding_start == "neighbours" and not start.path:
        sample = train_text.sample if isinstance(train_text, StreamedText) else train_text
        size = vocabulary_size(tokenizer), denoiser.network.get_input_embeddings().weight.shape[1]
        found = distributed.call_on_leader(lambda: neighbour_vectors(sample, tokenizer, *size))
        denoiser.start_embeddings(*found)
    config.text.check_process(token_dependent=process.token_dependent)
    check_validation(config, process, denoiser)
    check_samples(config, process)
    histogram = np.bincount(train_text.target_lengths).tolist()
    model = ModelParts(
        denoiser, process, tokenizer, counts, histogram, data.max_length, pairs=pairs, text_format=config.text
    )
    if config.network.lora_rank and not config.network.merge_lora:
        model = replace(model, adapter_base=Base.of(denoiser.network, config.network.model_name_or_path))
    return model.to(device), train_text, valid_text


def check_samples(config: TrainConfig, process: Process) -> None:
    """Check that --sample_steps applies to the process.

    Raises:
        UserError: if it does not.
    """
    steps = config.run.sample_steps
    if steps and config.run.process == "ar":
        raise UserError(f"sample_steps={steps}: process=ar draws token by token; leave it out")
    if steps > process.num_steps:
        raise UserError(
            f"sample_steps={steps} must lie in 1..{process.num_steps}, the T of this process; 0: the default"
        )


def check_validation(config: TrainConfig, process: Process, denoiser: NetworkDenoiser) -> None:
    """Check that --eval_estimator applies to the process and the network.

    Raises:
        UserError: if it does not.
    """
    name, limit = config.run.eval_estimator, math.isinf(process.num_steps)
    if name == TrainArgs.eval_estimator:
        return
    known = process.limit_estimators if limit else process.estimators
    if name not in known or denoiser.time_conditioned:
        what = "a network with time conditioning" if name in known else f"process={config.run.process}"
        raise UserError(f"eval_estimator={name} does not suit {what}; leave it out")


def prepare_network(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, rows: list[int] | None = None
) -> NetworkDenoiser:
    """Return the denoiser that the settings describe; `rows` are those of its vocabulary that a trimmed one keeps.

    Raises:
        UserError: if it cannot be built, or has fewer positions than --max_length.
    """
    torch.manual_seed(config.run.seed)
    denoiser = build_denoiser(
        config.network,
        tokenizer,
        config.process.time_period,
        causal=PROCESSES[config.run.process].causal,
        embedding_settings=config.process.network_settings,
        rows=rows,
    )
    if config.data.max_length > denoiser.max_length:
        raise UserError(
            f"max_length={config.data.max_length} exceeds the {denoiser.max_length} positions of "
            f"{config.network.model_name_or_path}; lower it"
        )
    denoiser.pack_rows(config.data.max_length if config.data.packing else 0)
    return denoiser


def token_counts(
    config: TrainConfig, train_text: Text, tokenizer: PreTrainedTokenizerBase, vocab_size: int, *, of_pairs: bool
) -> Tensor:
    """Return the count of each token as a target, int64 [V], from --word_freq_file or from the training text."""
    if not config.data.word_freq_file:
        with distributed.leader_first():
            return train_text.counts(vocab_size)
    counts = read_word_freq(Path(config.data.word_freq_file), tokenizer, vocab_size, config.text.detokenizer)
    return train_text.with_special_counts(counts) if of_pairs or config.text.whole_rows else counts


def load_data(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Text, Text, PairFormat | None]:
    """Return the training data, the validation data and, for pairs, their format.

    Raises:
        UserError: if the data are text and a setting for pairs is given, or the reverse.
    """
    data = config.data
    if holds_pairs(training_source(data.train_data, data.column_names), streaming=data.streaming):
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


def load_or_learn_tokenizer(
    data: DataArgs, network: NetworkArgs, detokenizer: str, earlier: Path | None
) -> tuple[PreTrainedTokenizerBase, list[int] | None]:
    """Return the named tokenizer, or one learnt from the training text; a resumed run loads the `earlier` one.

    Of a trimmed tokenizer, return the ids that its entries have in the whole one, too.

    Raises:
        UserError: if the settings are incompatible.
    """
    learnt = data.tokenizer in LEARNT
    if data.trim_vocabulary and (learnt or data.streaming):
        other = f"tokenizer={data.tokenizer}" if learnt else "streaming=true"
        raise UserError(f"trim_vocabulary=true cannot be combined with {other}; leave one of them out")
    if learnt and data.streaming and training_source(data.train_data).hub_name:
        raise UserError(
            f"tokenizer={data.tokenizer} would download the whole data set from the hub; give a trained --tokenizer"
        )
    if learnt and earlier:  # learning again may break ties differently
        return load_tokenizer(str(earlier)), None
    if learnt:
        source, size = training_source(data.train_data, data.column_names), data.vocab_size or DEFAULT_VOCAB_SIZE
        return learn_tokenizer(data.tokenizer, source, size, data.cache_dir, strip_accents=data.strip_accents), None
    tokenizer = load_tokenizer(data.tokenizer or network.model_name_or_path)
    if data.vocab_size not in (0, known := vocabulary_size(tokenizer)):
        raise UserError(f"vocab_size={data.vocab_size}, but the tokenizer has {known} tokens; leave it out")
    if not data.trim_vocabulary:
        return tokenizer, None
    if earlier:
        trimmed = load_tokenizer(str(earlier))
    else:
        (source, part, keep), _ = split_sources(data)
        where = {"part": part, "keep": keep, "detokenizer": detokenizer}
        trimmed = trim_tokenizer(tokenizer, source, data.cache_dir, **where)
    return trimmed, kept_ids(trimmed, tokenizer)


def warn_of_other_vocabulary(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, rows: list[int] | None) -> None:
    """Warn if pretrained weights are given a tokenizer whose tokens are not those of the network's own.

    Each token would begin with the embedding of another. A folder without a tokenizer is not compared.
    """
    if config.network.from_scratch or not config.data.tokenizer or job.rank():
        return
    try:
        own = load_tokenizer(config.network.model_name_or_path).get_vocab()
    except UserError:
        return
    found = tokenizer.get_vocab()
    other = sum(own.get(entry) != (rows[i] if rows else i) for entry, i in found.items())
    if other > MOST_OTHER * len(found):
        warn(
            f"{other:,} of the {len(found):,} tokens of --tokenizer {config.data.tokenizer} are others, or have other "
            f"ids, in {config.network.model_name_or_path}, whose pretrained embeddings do not fit them; leave it out"
        )


def open_batches(
    config: TrainConfig, plan: Plan, text: Text, tokenizer: PreTrainedTokenizerBase
) -> batching.BatchStream:
    """Return the stream of training batches, at the position of the run."""
    position, seed, parts = plan.start.facts.get("position"), config.run.seed, plan.parts
    rank, world_size = job.rank(), job.world_size()
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


def identities(model: ModelParts, train_text: Text, valid_text: Text) -> dict[str, str]:
    """Return digests of the texts, word counts and network, which a resumed run must not change."""
    counts = hashlib.blake2b(model.token_counts.numpy().tobytes(), digest_size=12).hexdigest()
    kept = used_entries(model.denoiser.network.config.to_dict())
    if has_lora(model.denoiser.network):
        kept["adapters_of"] = fingerprint(model.denoiser.network)
    network = hashlib.blake2b(json.dumps(kept, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
    return {"data": train_text.identity, "valid_data": valid_text.identity, "word_freq": counts, "network": network}


def legacy_identities(train_text: Text, valid_text: Text) -> dict[str, str]:
    """Return the digests of the texts by the rule of earlier versions, for runs begun with them."""
    return {"data": train_text.legacy_identity(), "valid_data": valid_text.legacy_identity()}
