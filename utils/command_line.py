"""Command lines: every setting is declared once, in a dataclass beside its consumer, and parsed here.

Both published DiffusionBERT command lines run as written: aliases stand beside each field, values that changed their
form are rewritten by `_MODERNISED`, and flags that mean nothing any more are accepted with a word of explanation.
"""

import argparse
import difflib
import math
import sys
from dataclasses import dataclass, field
from typing import NoReturn

from transformers import HfArgumentParser

from process import UserError, check_choices, check_ranges, shown

PROCESS_NAMES = ("word_freq", "mdlm", "d3pm", "sedd", "ar", "score")
"""What --process may be; `checkpoint.PROCESSES` says what each is."""


@dataclass(frozen=True)
class TrainArgs:
    """How long to train, on what, and where the results go."""

    output_dir: str = field(
        metadata={
            "aliases": ["-mdir"],
            "help": "a new folder: checkpoint/ (best), checkpoint-last/, log.jsonl, curve.png",
        }
    )
    process: str = field(
        default="word_freq",
        metadata={"choices": list(PROCESS_NAMES), "help": "DiffusionBERT, or another way to model the same text"},
    )
    max_steps: int = field(default=0, metadata={"help": "optimizer steps; 0: as many as num_train_epochs takes"})
    num_train_epochs: float = field(default=3.0, metadata={"aliases": ["--epochs"], "help": "passes over the data"})
    max_minutes: float = field(default=0.0, metadata={"help": "end after this time, the schedule with it; 0: no limit"})
    accumulation_steps: int = field(
        default=1, metadata={"aliases": ["--gradient_accumulation_steps"], "help": "micro-steps per optimizer step"}
    )
    warm_start: float = field(default=0.0, metadata={"help": "share of the training spent as a masked LM first"})
    warm_start_rates: str = field(default="0.1,0.4", metadata={"help": "range of its mask rates"})
    precision: str = field(
        default="auto",
        metadata={"choices": ["auto", "fp32", "bf16", "fp16"], "help": "of the network; the maths is fp32+"},
    )
    fp16: bool = field(default=False, metadata={"help": "the same as --precision fp16"})
    fused_loss: bool = field(
        default=False, metadata={"help": "never hold all logits of a step: less memory, a second product with the head"}
    )
    eval_steps: int = field(
        default=0,
        metadata={"aliases": ["--eval_interval"], "help": "0: up to ten times in all, for a ninth of the work"},
    )
    eval_step_size: int = field(default=64, metadata={"help": "steps of T per window of the validation bound"})
    eval_sequences: int = field(
        default=256,
        metadata={
            "help": "validation sentences scored during training; 0: all; without eval_steps fewer, if it is short"
        },
    )
    logging_steps: int = field(default=50, metadata={"help": "steps between lines of the log (the first come sooner)"})
    resume: str = field(
        default="auto",
        metadata={
            "choices": ["auto", "true", "false"],
            "help": "go on with the run in output_dir: if it is of these settings; surely, maybe for longer; never",
        },
    )
    save_every: int = field(default=0, metadata={"help": "steps between saved states; 0: by save_minutes"})
    save_minutes: float = field(default=10.0, metadata={"help": "minutes between saved states"})
    keep_last: int = field(default=2, metadata={"help": "saved states that are kept; the best checkpoint is apart"})
    time_limit: float = field(
        default=0.0, metadata={"help": "minutes after which this process saves and ends, to be resumed; 0: none"}
    )
    max_skipped_steps: int = field(
        default=20, metadata={"help": "steps in a row that may be skipped for a loss or gradient that is not finite"}
    )
    strategy: str = field(
        default="ddp", metadata={"choices": ["ddp", "fsdp"], "help": "of many processes: whole networks, or shards"}
    )
    seed: int = field(default=42, metadata={"help": "of weights, data order and noise"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch decides"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:N"})
    fitlog: bool = field(default=True, metadata={"help": "also log with fitlog"})
    overwrite: bool = field(default=False, metadata={"help": "replace the run in output_dir"})

    def __post_init__(self) -> None:
        if not self.output_dir.strip():
            raise UserError("output_dir is empty; give a folder for the run")
        if not 0 <= self.max_steps <= 10**12 or (self.max_steps == 0 and not 0 < self.num_train_epochs <= 1e6):
            raise UserError(
                f"max_steps={self.max_steps}, num_train_epochs={self.num_train_epochs}: give one of them above 0 "
                "(at most 1e12 steps, 1e6 epochs)"
            )
        if self.fp16 and self.precision not in ("auto", "fp16"):
            raise UserError(f"fp16=true contradicts precision={self.precision}; give one of them")
        from_one = ("accumulation_steps", "eval_step_size", "logging_steps", "keep_last", "max_skipped_steps")
        check_ranges(self, **dict.fromkeys(from_one, (1, 10**9)))
        for name in ("max_minutes", "eval_steps", "eval_sequences", "threads", "seed", "save_every", "time_limit"):
            if not 0 <= getattr(self, name) < 2**63:
                raise UserError(f"{name}={getattr(self, name)} must be 0 or more, and below 2**63")
        if not 0 < self.save_minutes < math.inf:
            raise UserError(f"save_minutes={self.save_minutes} must be above 0")
        check_choices(self)
        if self.overwrite and self.resume == "true":
            raise UserError("overwrite=true begins anew and resume=true goes on; give one of them")
        if not 0 <= self.warm_start <= 1:
            raise UserError(f"warm_start={self.warm_start} must lie in [0, 1], a share of the training")
        low, high = self.rates
        if not 0 < low <= high <= 1:
            raise UserError(f"warm_start_rates={self.warm_start_rates!r} must be two rates, 0 < low <= high <= 1")

    @property
    def rates(self) -> tuple[float, float]:
        """The warm start's lowest and highest mask rate."""
        try:
            low, high = (float(rate) for rate in self.warm_start_rates.split(","))
        except ValueError as error:
            raise UserError(f"warm_start_rates={self.warm_start_rates!r} must look like 0.1,0.4") from error
        return low, high


_MODERNISED = {
    ("--spindle_schedule", "true"): ("--spindle", "paper"),
    ("--spindle_schedule", "false"): ("--spindle", "none"),
    ("--task_name", "QT"): ("--task_name", "conditional_data/Q-T"),
    **{("--task_name", task): ("--task_name", f"conditional_data/{task}") for task in ("qqp", "wiki_alignment", "CC")},
}
"""Published flags whose value changed its form."""

MEANINGLESS = {
    "--local_rank": "torchrun tells each process its rank",
    "--load_step": "a checkpoint is given by its folder",
    "--predict_x0": "the network always predicts x0",
    "--sample_strategy": "tokens are always drawn from the prediction; see --temperature, --top_k, --top_p",
    "--eval_step": "use --eval_steps",
    "--log_space": "all arithmetic is done in log space where it matters",
}
"""Published flags that no longer mean anything, each taking one value."""

FROM_CHECKPOINT = {
    "--model_type": "the checkpoint says which network it holds",
    "--model_name_or_path": "the checkpoint says which network it holds",
    "--vocab_size": "the checkpoint says which vocabulary it uses",
    "--schedule": "the checkpoint says which schedule it was trained with",
    "--noise_schedule": "the checkpoint says which schedule it was trained with",
    "--word_freq_lambda": "the checkpoint says which spindle it was trained with",
    "--timestep": "the checkpoint says how it is told the time",
    "--name": "the checkpoint is given by its folder",
}
"""More of them, for the scripts that read a checkpoint."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults where they say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        negation = any(name.startswith("--no_") for name in action.option_strings)
        silent = action.required or negation or action.default in ("", None)
        return action.help if silent else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """HfArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists every setting)")


def chosen_process(argv: list[str] | None = None) -> str:
    """Which process a command line names: its settings are flags, too, and must be known before the line is read.

    Raises:
        UserError: if there is none of that name.
    """
    words = _split_equals(sys.argv[1:] if argv is None else argv)
    named = [value for flag, value in zip(words, words[1:], strict=False) if flag == "--process"]
    if named and named[-1] not in PROCESS_NAMES:
        raise UserError(f"process={shown(named[-1])} must be one of {', '.join(PROCESS_NAMES)}")
    return named[-1] if named else PROCESS_NAMES[0]


def parse(
    kinds: list[type],
    description: str,
    *,
    meaningless: dict[str, str] | None = None,
    elsewhere: dict[str, str] | None = None,
    epilog: str = "",
    argv: list[str] | None = None,
) -> tuple:
    """One frozen dataclass of each kind from the command line.

    Args:
        kinds: dataclasses; their fields are the flags.
        description: what --help says first.
        meaningless: flags that are accepted and explained on stderr, by name.
        elsewhere: flags that are known but not here, by name, and where they are, in words.
        epilog: what --help says last.
        argv: the words; default the process's own.

    Raises:
        UserError: if a flag is unknown or a value is out of range.
    """
    words = _modernise(sys.argv[1:] if argv is None else argv, {**MEANINGLESS, **(meaningless or {})})
    parser = _Parser(
        kinds, description=description.split("\n")[0], epilog=epilog, allow_abbrev=False, formatter_class=_Help
    )
    for action in parser._actions:  # transformers gives the negation of a flag the same help as the flag
        if negated := [name for name in action.option_strings if name.startswith("--no_")]:
            action.help = f"the same as {negated[0].replace('--no_', '--')} false"
    known = {name for action in parser._actions for name in action.option_strings}
    for word in words:  # before argparse, which would speak of a setting that is missing and not of the misspelt one
        if word.startswith("--") and word not in known:
            raise UserError(f"{_unknown(word, known, elsewhere or {})} (--help lists every setting)")
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(words, True, look_for_args_file=False)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    if rest:
        raise UserError(f"{_unknown(rest[0], known, elsewhere or {})} (--help lists every setting)")
    return tuple(parsed)


def _unknown(word: str, known: set[str], elsewhere: dict[str, str]) -> str:
    """What is wrong with a word of the command line that nothing took."""
    if not word.startswith("-"):
        return f"a word too many: {shown(word)}; every setting is a flag and its value"
    if word.replace("-", "_").replace("__", "--", 1) in elsewhere:
        return f"{word} is a setting of {elsewhere[word.replace('-', '_').replace('__', '--', 1)]}"
    spelt = sorted(name for name in known if "-" not in name.lstrip("-"))
    near = difflib.get_close_matches(word, spelt, n=1, cutoff=0.75)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown flag {shown(word)[1:-1]}{hint}"


def _modernise(argv: list[str], meaningless: dict[str, str]) -> list[str]:
    words: list[str] = []
    rest = iter(_split_equals(argv))
    for word in rest:
        if word in meaningless:
            next(rest, None)
            print(f"note: {word} has no effect: {meaningless[word]}", file=sys.stderr)
        elif word == "--spindle_schedule":
            value = next(rest, "").lower()
            if (word, value) not in _MODERNISED:
                raise UserError(f"{word} {value!r}: use --spindle paper, released or none")
            words += _MODERNISED[word, value]
        elif word == "--task_name":
            value = next(rest, "")
            words += _MODERNISED.get((word, value), (word, value))
        else:
            words.append(word)
    return words


def _split_equals(argv: list[str]) -> list[str]:
    split: list[str] = []
    for word in argv:
        flag, equals, value = word.partition("=")
        split += [flag, value] if word.startswith("--") and equals else [word]
    return split
