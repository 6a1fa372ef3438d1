"""Settings of the metrics and of the table of samplers."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

from data.column_names import ColumnNames
from diffusion.options import ORDERS
from evaluation.words import WORD_KINDS
from utils.errors import UserError, check_choices, check_ranges

MAX_CANDIDATES = 1000
"""Candidates per source; MBR and self-BLEU compare all pairs."""


@dataclass(frozen=True)
class MetricArgs(ColumnNames):
    """Settings of the metrics."""

    group: ClassVar[str] = "metrics"

    predictions: str = field(
        metadata={"help": ".jsonl of predict_downstream_condition.py, DiffuSeq's .json (or a folder), or samples"}
    )
    references: str = field(
        default="", metadata={"help": "references of samples: text, or pairs line by line; a file or folder"}
    )
    train_data: str = field(
        default="", metadata={"help": "training data of the model: for copies, nearest and random training targets"}
    )
    tokenizer: str = field(
        default="", metadata={"help": "checkpoint or tokenizer that normalizes references and training text"}
    )
    mbr_size: int = field(default=0, metadata={"help": "number of candidates to choose from; 0: all"})
    diversity_samples: int = field(
        default=3, metadata={"help": "number of candidates for self-BLEU and div-4 (DiffuSeq: 3)"}
    )
    released: bool = field(
        default=False, metadata={"help": "rules of the released program: BLEU swapped, references not normalized"}
    )
    rouge_tokens: str = field(
        default="unicode",
        metadata={
            "choices": list(WORD_KINDS),
            "help": "words of ROUGE-L; unicode: any script; ascii: a-z and 0-9 only, like DiffuSeq",
        },
    )
    bertscore_model: str = field(
        default="", metadata={"help": "model folder for BERTScore; DiffuSeq uses deberta-xlarge-mnli"}
    )
    bertscore_layer: int = field(
        default=0, metadata={"help": "layer for BERTScore; 0: bert-score's choice for the model"}
    )
    mauve_model: str = field(default="", metadata={"help": "folder of a causal language model for MAUVE"})
    judge_model: str = field(
        default="",
        metadata={"help": "folder of a causal language model, or an ar checkpoint, for generative perplexity"},
    )
    json: bool = field(default=False, metadata={"help": "JSON output: one object and nothing else on stdout"})
    seed: int = field(default=0, metadata={"help": "seed of random training targets and of MAUVE's clusters"})
    threads: int = field(default=0, metadata={"help": "number of CPU threads; 0: torch's default"})
    device: str = field(default="auto", metadata={"help": "device: auto, cpu, cuda, cuda:N or mps"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.given and not (self.references or self.train_data):
            raise UserError(f"{self.given[0]} names a column of --references or --train_data; give one, or no name")
        check_choices(self)
        check_ranges(self, mbr_size=(0, MAX_CANDIDATES), diversity_samples=(0, MAX_CANDIDATES))
        check_ranges(self, bertscore_layer=(0, 1000))
        check_ranges(self, seed=(0, 2**63 - 1))


@dataclass(frozen=True)
class RefereeArgs:
    """Table of all samplers."""

    group: ClassVar[str] = "table of samplers"

    referee: bool = field(
        default=False, metadata={"help": "table of the bound and the exact likelihood of every order"}
    )
    table_orders: str = field(default="", metadata={"help": "orders of the table, by comma; default: all"})
    table_tokens: str = field(
        default="1,2,4,8", metadata={"help": "numbers of tokens to reveal after each forward pass, by comma"}
    )
    table_steps: str = field(
        default="4,8,16,32,128",
        metadata={"help": "reverse steps of the bounds, by comma, besides the limit; those above T count as T"},
    )
    judge_model: str = field(
        default="", metadata={"help": "folder of a causal language model that scores samples of each sampler"}
    )
    judge_samples: int = field(default=200, metadata={"help": "number of samples for it"})
    picture: str = field(default="", metadata={"help": ".png file to draw: perplexity by forward passes per token"})

    def __post_init__(self) -> None:
        check_ranges(self, judge_samples=(1, 10**6))
        _ = self.orders, self.tokens, self.steps
        given = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        if given and not self.referee:
            raise UserError(f"{given[0]} is for the table of samplers; add --referee")
        if self.picture and not self.picture.lower().endswith(".png"):
            raise UserError(f"picture={self.picture}: must end in .png")

    @property
    def orders(self) -> list[str]:
        """The orders."""
        found = list(dict.fromkeys(name.strip() for name in (self.table_orders or ",".join(ORDERS)).split(",")))
        for name in found:
            if name not in ORDERS:
                raise UserError(f"table_orders={self.table_orders}: {name!r} is none of {', '.join(ORDERS)}")
        return found

    @property
    def tokens(self) -> list[int]:
        """The numbers of tokens."""
        return whole_numbers("table_tokens", self.table_tokens)

    @property
    def steps(self) -> list[int]:
        """The numbers of reverse steps."""
        return whole_numbers("table_steps", self.table_steps)


def whole_numbers(name: str, value: str) -> list[int]:
    """Return the numbers of a setting.

    Raises:
        UserError: if one is no whole number, or out of range.
    """
    try:
        found = [int(entry) for entry in value.split(",")]
    except ValueError as error:
        raise UserError(f"{name}={value}: must be whole numbers, separated by commas") from error
    if not all(1 <= entry <= 10**6 for entry in found):
        raise UserError(f"{name}={value}: each must lie in 1..1000000")
    return list(dict.fromkeys(found))
