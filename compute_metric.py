"""Metrics of predictions (seq2seq) or of samples (unconditional text).

python compute_metric.py --predictions out/qqp/predictions.jsonl
python compute_metric.py --predictions out/qqp/predictions.jsonl --train_data conditional_data/qqp \
    --tokenizer out/qqp/checkpoint
python compute_metric.py --predictions samples.txt --references test.txt --tokenizer out/lm1b/checkpoint \
    --train_data train.txt
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.corpus import PAIR, Source, announce, holds_pairs, read_sentences, scored_source, training_source
from data.tokenizers import encode, load_tokenizer, respell
from evaluation import text_metrics, words
from evaluation.generative_perplexity import generative_perplexity
from evaluation.model_metrics import bert_score, mauve
from evaluation.predictions import read_predictions, read_samples
from utils import distributed, figures, files, hub
from utils.command_line import parse, run_script
from utils.device import pick_device, set_up_cpu
from utils.errors import UserError, check_choices, check_ranges, require_finite
from utils.messages import note

Report = dict[str, float | int | str | list[str] | None]
Spell = Callable[[list[str]], list[str]]
MOST_CANDIDATES = 1000
"""Of a source: MBR and self-BLEU compare all pairs."""
MOST_CHARACTERS = 500_000
"""Of a text whose words are aligned with another's, in seconds."""
MOST_WORDS_COMPARED = 10**9
"""By BLEU of all pairs of a source's candidates, in hours."""


@dataclass(frozen=True)
class MetricArgs:
    """What to measure, and against what."""

    predictions: str = field(
        metadata={"help": ".jsonl of predict_downstream_condition.py, DiffuSeq's .json (or a folder), or samples"}
    )
    references: str = field(default="", metadata={"help": "for samples: text, or pairs line by line; a file or folder"})
    train_data: str = field(
        default="", metadata={"help": "what the model was trained on: for copies, nearest and random training targets"}
    )
    tokenizer: str = field(
        default="", metadata={"help": "a checkpoint or tokenizer: references and training text are spelled its way"}
    )
    mbr_size: int = field(default=0, metadata={"help": "choose among the first so many candidates; 0: all"})
    diversity_samples: int = field(default=3, metadata={"help": "candidates self-BLEU and div-4 look at (DiffuSeq: 3)"})
    released: bool = field(
        default=False, metadata={"help": "as the released program had it: BLEU swapped, text references as they are"}
    )
    rouge_tokens: str = field(
        default="unicode",
        metadata={
            "choices": list(words.WORD_KINDS),
            "help": "words of ROUGE-L: of any script; or a-z and 0-9 alone, as DiffuSeq has it",
        },
    )
    bertscore_model: str = field(default="", metadata={"help": "model folder; DiffuSeq's: deberta-xlarge-mnli"})
    bertscore_layer: int = field(default=0, metadata={"help": "0: bert-score's choice for such a model"})
    mauve_model: str = field(default="", metadata={"help": "folder of a causal language model"})
    judge_model: str = field(
        default="", metadata={"help": "folder of a causal language model, or an ar checkpoint: generative perplexity"}
    )
    json: bool = field(default=False, metadata={"help": "print one JSON object and nothing else on stdout"})
    seed: int = field(default=0, metadata={"help": "of random training targets and of MAUVE's clusters"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch decides"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:N"})

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, mbr_size=(0, MOST_CANDIDATES), diversity_samples=(0, MOST_CANDIDATES))
        check_ranges(self, bertscore_layer=(0, 1000))
        check_ranges(self, seed=(0, 2**63 - 1))


def main() -> None:
    """Read, measure, print."""
    (args,) = parse([MetricArgs], __doc__)
    distributed.require_single("compute_metric.py")
    hub.quiet_libraries()
    set_up_cpu(args.threads)
    path = files.local_path(args.predictions)
    if not path.exists():
        raise UserError(f"predictions={path}: no such file or folder")
    tokenizer = tokenizer_of(args.tokenizer) if args.tokenizer else None
    records = read_predictions(path)
    if records is not None:
        refuse(args, "references", f"{path} holds predictions with references of their own")
    elif not args.references:
        raise UserError(f"{path} holds samples; give --references, a text (or pairs) to compare them with")
    elif holds_pairs(source := scored_source(args.references)):
        records = aligned(path, source, speller(args, tokenizer))
    if records is None:
        refuse(args, "bertscore_model", "samples without a source are measured with --mauve_model")
        refuse(args, "mbr_size", "samples without a source have no candidates")
        report = unconditional(args, read_samples(path), source, speller(args, tokenizer))
    else:
        refuse(args, "mauve_model", "predictions of pairs are measured with --bertscore_model")
        refuse(args, "judge_model", "predictions of pairs are measured with --bertscore_model")
        report = conditional(args, records, tokenizer)
    models = [m for m in (args.bertscore_model, args.mauve_model, args.judge_model) if m]
    require_finite(
        report,
        f"look for NaN in the weights of {', '.join(models)}" if models else "report it: a fault of this program",
    )
    if args.references:
        announce({"references": source})
    for text in report["notes"]:
        note(text)
    print(figures.as_json(report) if args.json else table(report))


def refuse(args: MetricArgs, name: str, reason: str) -> None:
    """Refuses a setting that would have no effect.

    Raises:
        UserError: if it was given.
    """
    if value := getattr(args, name):
        raise UserError(f"{name}={value} has no meaning here: {reason}")


def aligned(path: Path, source: Source, spell: Spell) -> list[dict]:
    """Records of samples that belong to pairs line by line."""
    samples = read_samples(path)
    sources, references = (spell([*read_sentences(replace(source, column=side))]) for side in PAIR)
    if len(samples) != len(references):
        raise UserError(f"{path}: {len(samples)} predictions, but {source} has {len(references)} references")
    return [
        {"source": src, "reference": trg, "candidates": [sample], "prediction": sample}
        for src, trg, sample in zip(sources, references, samples, strict=True)
    ]


def speller(args: MetricArgs, tokenizer: PreTrainedTokenizerBase | None) -> Spell:
    """How references are written: as the tokenizer writes samples, or as they are."""
    if args.released:
        return lambda texts: texts
    if tokenizer is None:
        note = "references are taken as they are; --tokenizer CHECKPOINT would spell them as its samples are spelled"
        print(f"note: {note} (lower case, spaces)", file=sys.stderr)
        return lambda texts: texts
    return lambda texts: respell(tokenizer, texts)


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    """The one that is named, or that of the checkpoint that is."""
    folder = files.local_path(name)
    return load_tokenizer(str(folder / "checkpoint") if (folder / "checkpoint").is_dir() else name)


# ---- seq2seq ---------------------------------------------------------------------------------------------------------


def conditional(args: MetricArgs, records: list[dict], tokenizer: PreTrainedTokenizerBase | None) -> Report:
    """Everything DiffuSeq's tables have, each with its standard error over sources, and what a model must beat."""
    if args.train_data and tokenizer is None:
        raise UserError(
            "train_data: its targets are spelled, and its sources compared, by a tokenizer; add --tokenizer"
        )
    require_comparable(args, records)
    references = [record["reference"] for record in records]
    candidates = [record["candidates"][: args.mbr_size or None] for record in records]
    if args.mbr_size > len(candidates[0]):
        raise UserError(f"mbr_size={args.mbr_size}, but there are {len(candidates[0])} candidates a source")
    chosen = tqdm(candidates, desc="choosing", unit="source", leave=False, disable=None)
    predictions = [texts[text_metrics.mbr_select(texts, released=args.released)] for texts in chosen]
    report: Report = {"num_sources": len(records), "mbr_size": len(candidates[0])}
    report |= summarise(quality(args, predictions, references))
    report["rouge_tokens"] = args.rouge_tokens
    report |= summarise({"bleu_single": bleus([texts[0] for texts in candidates], references, args.released)})
    report |= diversity(args, [record["candidates"] for record in records])
    if args.bertscore_model:
        device = pick_device(args.device)
        settings = args.bertscore_model, args.bertscore_layer, device
        report |= summarise({"bertscore": bert_score(predictions, references, *settings)})
    report |= summarise(baselines(args, records, tokenizer))
    return report | {"notes": notes([*predictions, *references])}


def require_comparable(args: MetricArgs, records: list[dict]) -> None:
    """Refuses what would take days: all pairs of candidates are compared, and all words of two texts.

    Raises:
        UserError: with the bound.
    """
    for number, record in enumerate(records, start=1):
        texts = record["candidates"][: args.mbr_size or None]
        if len(texts) > MOST_CANDIDATES:
            many = f"{len(texts):,} candidates a source, and all pairs are compared"
            raise UserError(f"{args.predictions}: {many}; give --mbr_size, {MOST_CANDIDATES:,} at most")
        longest = max(len(text) for text in (*texts, record["source"], record["reference"]))
        if longest > MOST_CHARACTERS:
            long = f"text {number} has {longest:,} characters, more than {MOST_CHARACTERS:,}"
            raise UserError(f"{args.predictions}: {long}; split it into several")
        if len(texts) * sum(len(text.split()) for text in texts) > MOST_WORDS_COMPARED:
            many = f"{len(texts):,} candidates of text {number} are too long to compare all pairs of them"
            raise UserError(f"{args.predictions}: {many}; lower --mbr_size")


def notes(texts: list[str]) -> list[str]:
    """What must be known of the figures of texts."""
    if words.are_set_apart(texts):
        return []
    return [
        "most of the text is in a script without spaces between words, so a line is one word: BLEU, distinct, dist_1, "
        "entropy, repetition, length and the choice among candidates say little (put spaces between its words or "
        "letters); ROUGE-L takes each letter for a word"
    ]


def bleus(hypotheses: list[str], references: list[str], released: bool = False) -> list[float]:
    """BLEU of each pair, the right way round or as released."""
    sides = (references, hypotheses) if released else (hypotheses, references)
    return [text_metrics.bleu(*pair) for pair in zip(*sides, strict=True)]


def quality(args: MetricArgs, predictions: list[str], references: list[str]) -> dict[str, list[float]]:
    """One figure a source, by metric."""
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
    """Self-BLEU and div-4 of the first few candidates of each source; nothing if there is only one."""
    first = [texts[: args.diversity_samples] for texts in candidates]
    if len(first[0]) < 2:
        return {}
    values = {
        "self_bleu": [text_metrics.pairwise_self_bleu(texts) for texts in first],
        "div_4": [text_metrics.diverse_4(texts) for texts in first],
    }
    return {"diversity_samples": len(first[0]), **summarise(values)}


def baselines(
    args: MetricArgs, records: list[dict], tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, list[float]]:
    """The same metrics of copying the source, and BLEU of training targets: a random one, and the nearest source's."""
    sources, references = ([record[side] for record in records] for side in ("source", "reference"))
    found = {f"{name}_copy": values for name, values in quality(args, sources, references).items()}
    del found["exact_match_copy"], found["length_copy"]
    if not args.train_data:
        return found
    if not args.tokenizer:
        raise UserError(
            "train_data: its targets are spelled, and its sources compared, by a tokenizer; add --tokenizer"
        )
    source = training_source(args.train_data)
    train_sources, targets = ([*read_sentences(replace(source, column=side))] for side in PAIR)
    targets = respell(tokenizer, targets)
    drawn = np.random.default_rng(args.seed).integers(len(targets), size=len(records))
    nearest = text_metrics.nearest_targets(pieces(tokenizer, sources), pieces(tokenizer, train_sources))
    found["bleu_random"] = bleus([targets[i] for i in drawn], references, args.released)
    found["bleu_nearest"] = bleus([targets[i] for i in nearest], references, args.released)
    return found


def pieces(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[set[int]]:
    """The word pieces of each text."""
    return [set(ids) for ids in encode(tokenizer, texts)["input_ids"]]


# ---- unconditional text ----------------------------------------------------------------------------------------------


def unconditional(args: MetricArgs, samples: list[str], source: Source, spell: Spell) -> Report:
    """Quality against a whole corpus, diversity, repetition, and copying."""
    tokenised = [sample.split() for sample in samples]
    references = spell([*read_sentences(source, description="reading references")])
    corpus = text_metrics.ReferenceCorpus(text.split() for text in references)
    report: Report = {"num_samples": len(samples), "num_references": len(references)}
    values = {"bleu_4": [corpus.bleu(sample) for sample in tokenised]}
    values["self_bleu_4"] = text_metrics.self_bleu(tokenised) if len(tokenised) > 1 else []
    values["repetition"] = [text_metrics.repetition(sample) for sample in tokenised]
    values["length"] = [float(len(sample)) for sample in tokenised]
    report |= summarise(values)
    report["corpus_bleu_4"] = corpus.corpus_bleu(tokenised)
    report |= {
        f"distinct_{order}": text_metrics.distinct(tokenised, order) for order in range(1, text_metrics.MAX_ORDER + 1)
    }
    report["unigram_entropy"] = text_metrics.unigram_entropy(tokenised)
    if args.train_data:
        known = set(spell([*read_sentences(training_source(args.train_data), description="reading training text")]))
        report |= summarise({"copied": [float(sample in known) for sample in samples]})
    if args.mauve_model:
        device = pick_device(args.device)
        report["mauve"] = mauve(samples, references, args.mauve_model, args.seed, device)
    if args.judge_model:
        report |= generative_perplexity(samples, args.judge_model, pick_device(args.device))
    return report | {"notes": notes([*samples, *references])}


# ---- words for people ------------------------------------------------------------------------------------------------


def summarise(values: dict[str, list[float]]) -> Report:
    """Mean and standard error of each list; None of an empty one."""
    report: Report = {}
    for name, numbers in values.items():
        report[name], report[f"{name}_se"] = text_metrics.mean_and_error(numbers) if numbers else (None, None)
    return report


def table(report: Report) -> str:
    """One metric a line, with its standard error if it has one; the notes are said elsewhere."""
    lines = []
    for name, value in report.items():
        if name.endswith("_se") or name == "notes":
            continue
        error = report.get(f"{name}_se")
        shown = figures.number(value, 4) if value is None or isinstance(value, float) else f"{value}"
        lines.append(f"{name:20}{shown:>10}" + (f" ± {figures.number(error, 4)}" if error is not None else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
