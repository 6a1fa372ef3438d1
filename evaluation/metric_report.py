"""Metrics of predictions of pairs, or of samples of text, as one report."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint import minimum_bayes_risk
from data.corpus import PAIR, Source, holds_pairs, read_sentences, scored_source, training_source
from data.tokenizers import encode, load_tokenizer, respell
from evaluation import text_metrics, words
from evaluation.generative_perplexity import generative_perplexity
from evaluation.model_metrics import bert_score, mauve
from evaluation.options import MAX_CANDIDATES, MetricArgs
from evaluation.predictions import read_predictions, read_samples
from utils import files
from utils.device import pick_device
from utils.errors import UserError
from utils.messages import note

Report = dict[str, float | int | str | list[str] | None]
Normalize = Callable[[list[str]], list[str]]
MAX_CHARACTERS = 500_000
"""Characters of a text; ROUGE-L of two such texts takes seconds."""
MAX_WORDS_COMPARED = 10**9
"""Words compared by BLEU of all pairs of a source's candidates; this many take hours."""


def measure(args: MetricArgs) -> tuple[Report, Source | None]:
    """Compute the metrics of predictions with sources, or of samples without; return the references' source too.

    Raises:
        UserError: if a file cannot be read, or a setting does not apply to it.
    """
    path = files.local_path(args.predictions)
    if not path.exists():
        raise UserError(f"predictions={path}: no such file or folder")
    tokenizer = open_tokenizer(args.tokenizer) if args.tokenizer else None
    records, source = read_predictions(path), None
    if records is not None:
        refuse(args, "references", f"{path} contains references")
    elif not args.references:
        raise UserError(f"{path} holds samples; give --references, a text (or pairs) to compare them with")
    elif holds_pairs(source := scored_source(args.references, args.column_names)):
        records = records_of_pairs(path, source, normalizer(args, tokenizer))
    if records is None:
        refuse(args, "bertscore_model", "samples without a source are measured with --mauve_model")
        refuse(args, "mbr_size", "samples without a source have no candidates")
        return unconditional(args, read_samples(path), source, normalizer(args, tokenizer)), source
    refuse(args, "text_column", "pairs have --source_column and --target_column")
    refuse(args, "mauve_model", "predictions of pairs are measured with --bertscore_model")
    refuse(args, "judge_model", "predictions of pairs are measured with --bertscore_model")
    return conditional(args, records, tokenizer), source


def refuse(args: MetricArgs, name: str, reason: str) -> None:
    """Refuse a setting that would have no effect.

    Raises:
        UserError: if it was given.
    """
    if value := getattr(args, name):
        raise UserError(f"{name}={value} has no effect here: {reason}; leave it out")


def records_of_pairs(path: Path, source: Source, normalize: Normalize) -> list[dict]:
    """Combine samples with the pairs of the same line numbers."""
    samples = read_samples(path)
    sources, references = (normalize([*read_sentences(replace(source, column=side))]) for side in PAIR)
    if len(samples) != len(references):
        raise UserError(
            f"{path}: {len(samples)} predictions, but {source} has {len(references)} references; give equal numbers"
        )
    return [
        {"source": src, "reference": trg, "candidates": [sample], "prediction": sample}
        for src, trg, sample in zip(sources, references, samples, strict=True)
    ]


def normalizer(args: MetricArgs, tokenizer: PreTrainedTokenizerBase | None) -> Normalize:
    """Return a function that writes references as the tokenizer decodes samples, or one that leaves them unchanged."""
    if args.released:
        return lambda texts: texts
    if tokenizer is None:
        note("references are not normalized; --tokenizer CHECKPOINT writes them like its samples (lower case, spaces)")
        return lambda texts: texts
    return lambda texts: respell(tokenizer, texts)


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by name, or from a checkpoint or output folder."""
    folder = files.local_path(name)
    return load_tokenizer(str(folder / "checkpoint") if (folder / "checkpoint").is_dir() else name)


# ---- seq2seq ---------------------------------------------------------------------------------------------------------


def conditional(args: MetricArgs, records: list[dict], tokenizer: PreTrainedTokenizerBase | None) -> Report:
    """Compute the metrics of DiffuSeq's tables and of baselines, with standard errors over sources."""
    if args.train_data and tokenizer is None:
        raise UserError("train_data needs a tokenizer for its targets and sources; give --tokenizer")
    require_comparable(args, records)
    references = [record["reference"] for record in records]
    candidates = [record["candidates"][: args.mbr_size or None] for record in records]
    if args.mbr_size > len(candidates[0]):
        raise UserError(f"mbr_size={args.mbr_size} must be at most {len(candidates[0])}, the candidates per source")
    progress = tqdm(candidates, desc="minimum Bayes risk", unit="source", leave=False, disable=None)
    predictions = [texts[minimum_bayes_risk.mbr_select(texts, released=args.released)] for texts in progress]
    report: Report = {"num_sources": len(records), "mbr_size": len(candidates[0])}
    report |= summarize(quality(args, predictions, references))
    report["rouge_tokens"] = args.rouge_tokens
    report |= summarize({"bleu_single": bleus([texts[0] for texts in candidates], references, args.released)})
    report |= diversity(args, [record["candidates"] for record in records])
    if args.bertscore_model:
        device = pick_device(args.device)
        scores = bert_score(predictions, references, args.bertscore_model, args.bertscore_layer, device)
        report |= summarize({"bertscore": scores})
    report |= summarize(baselines(args, records, tokenizer))
    return report | {"notes": notes([*predictions, *references])}


def require_comparable(args: MetricArgs, records: list[dict]) -> None:
    """Refuse input that would take days, since all pairs of candidates and all words of two texts are compared.

    Raises:
        UserError: with the limit.
    """
    for number, record in enumerate(records, start=1):
        texts = record["candidates"][: args.mbr_size or None]
        if len(texts) > MAX_CANDIDATES:
            reason = f"{len(texts):,} candidates per source, and all pairs are compared"
            raise UserError(f"{args.predictions}: {reason}; give --mbr_size, {MAX_CANDIDATES:,} at most")
        longest = max(len(text) for text in (*texts, record["source"], record["reference"]))
        if longest > MAX_CHARACTERS:
            reason = f"text {number} has {longest:,} characters, more than {MAX_CHARACTERS:,}"
            raise UserError(f"{args.predictions}: {reason}; split it into several")
        if len(texts) * sum(len(text.split()) for text in texts) > MAX_WORDS_COMPARED:
            reason = f"the {len(texts):,} candidates of text {number} are too long to compare all pairs"
            raise UserError(f"{args.predictions}: {reason}; lower --mbr_size")


def notes(texts: list[str]) -> list[str]:
    """Return warnings about the metrics of texts."""
    if words.has_separated_words(texts):
        return []
    return [
        "most of the text is in a script without spaces between words, so a line is one word: BLEU, distinct, dist_1, "
        "entropy, repetition, length and the choice among candidates are not meaningful (put spaces between words or "
        "letters); ROUGE-L treats each letter as a word"
    ]


def bleus(hypotheses: list[str], references: list[str], released: bool = False) -> list[float]:
    """Return BLEU of each pair; `released` swaps hypothesis and reference."""
    sides = (references, hypotheses) if released else (hypotheses, references)
    return [minimum_bayes_risk.bleu(*pair) for pair in zip(*sides, strict=True)]


def quality(args: MetricArgs, predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    """Return the metrics of predictions, one value per source."""
    return {
        "bleu": bleus(predictions, references, args.released),
        "rouge_l": [
            text_metrics.rouge_l(*pair, args.rouge_tokens) for pair in zip(predictions, references, strict=True)
        ],
        "dist_1": [text_metrics.distinct_1(prediction) for prediction in predictions],
        "length": [float(len(prediction.split())) for prediction in predictions],
        "exact_match": [float(p == r) for p, r in zip(predictions, references, strict=True)],
    }


def diversity(args: MetricArgs, candidates: list[list[str]]) -> Report:
    """Return self-BLEU and div-4 of each source's first candidates; empty if there is only one."""
    first = [texts[: args.diversity_samples] for texts in candidates]
    if len(first[0]) < 2:
        return {}
    values = {
        "self_bleu": [text_metrics.pairwise_self_bleu(texts) for texts in first],
        "div_4": [text_metrics.diverse_4(texts) for texts in first],
    }
    return {"diversity_samples": len(first[0]), **summarize(values)}


def baselines(
    args: MetricArgs, records: list[dict], tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, list[float]]:
    """Return the metrics of copying the source, and BLEU of training targets: random, and of the nearest source."""
    sources, references = ([record[side] for record in records] for side in ("source", "reference"))
    found = {f"{name}_copy": values for name, values in quality(args, sources, references).items()}
    del found["exact_match_copy"], found["length_copy"]
    if not args.train_data:
        return found
    source = training_source(args.train_data, args.column_names)
    train_sources, targets = ([*read_sentences(replace(source, column=side))] for side in PAIR)
    targets = respell(tokenizer, targets)
    drawn = np.random.default_rng(args.seed).integers(len(targets), size=len(records))
    nearest = text_metrics.nearest_targets(pieces(tokenizer, sources), pieces(tokenizer, train_sources))
    found["bleu_random"] = bleus([targets[i] for i in drawn], references, args.released)
    found["bleu_nearest"] = bleus([targets[i] for i in nearest], references, args.released)
    return found


def pieces(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[set[int]]:
    """Return the set of word pieces of each text."""
    return [set(ids) for ids in encode(tokenizer, texts)["input_ids"]]


# ---- unconditional text ----------------------------------------------------------------------------------------------


def unconditional(args: MetricArgs, samples: list[str], source: Source, normalize: Normalize) -> Report:
    """Compute quality against a whole corpus, diversity, repetition and copying."""
    tokenized = [sample.split() for sample in samples]
    references = normalize([*read_sentences(source, description="reading references")])
    corpus = text_metrics.ReferenceCorpus(text.split() for text in references)
    report: Report = {"num_samples": len(samples), "num_references": len(references)}
    values = {"bleu_4": [corpus.bleu(sample) for sample in tokenized]}
    values["self_bleu_4"] = text_metrics.self_bleu(tokenized) if len(tokenized) > 1 else []
    values["repetition"] = [text_metrics.repetition(sample) for sample in tokenized]
    values["length"] = [float(len(sample)) for sample in tokenized]
    report |= summarize(values)
    report["corpus_bleu_4"] = corpus.corpus_bleu(tokenized)
    report |= {
        f"distinct_{order}": text_metrics.distinct(tokenized, order) for order in range(1, text_metrics.MAX_ORDER + 1)
    }
    report["unigram_entropy"] = text_metrics.unigram_entropy(tokenized)
    if args.train_data:
        training = training_source(args.train_data, args.column_names)
        known = set(normalize([*read_sentences(training, description="reading training text")]))
        report |= summarize({"copied": [float(sample in known) for sample in samples]})
    if args.mauve_model:
        device = pick_device(args.device)
        report["mauve"] = mauve(samples, references, args.mauve_model, args.seed, device)
    if args.judge_model:
        report |= generative_perplexity(samples, args.judge_model, pick_device(args.device))
    return report | {"notes": notes([*samples, *references])}


def summarize(values: dict[str, list[float]]) -> Report:
    """Return mean and standard error of each list; None for an empty list."""
    report: Report = {}
    for name, numbers in values.items():
        report[name], report[f"{name}_se"] = text_metrics.mean_and_error(numbers) if numbers else (None, None)
    return report
