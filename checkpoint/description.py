"""process.json of a checkpoint: one dataclass that writes, reads and checks it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint.model_parts import PROCESSES, ModelParts, process_name_of
from data.options import TextFormat
from data.pairs import PairFormat
from data.word_counts import MOST_COUNT
from diffusion.process import Process
from diffusion.process_options import ProcessArgs
from models.denoiser import NetworkDenoiser
from utils.errors import UserError, shown
from utils.files import read_text

FORMAT = 1
FILE = "process.json"


@dataclass(frozen=True)
class Description:
    """Settings and statistics of a text model, except weights, tokenizer and word counts."""

    process_args: ProcessArgs
    time_conditioning: str
    max_length: int
    length_histogram: list[int]
    pairs: PairFormat | None
    text_format: TextFormat
    """Unused by a model of pairs."""
    facts: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.max_length) is not int or not 3 <= self.max_length <= 10**6:
            raise UserError(f"max_length={self.max_length!r} must be a whole number in 3..1000000")
        histogram = self.length_histogram
        if (
            not isinstance(histogram, list)
            or len(histogram) > 10**6 + 1
            or not all(type(n) is int and 0 <= n <= MOST_COUNT for n in histogram)
        ):
            raise UserError(f"length_histogram must be a list of at most 1000001 counts in 0..{MOST_COUNT}")
        if not any(histogram[1:]):
            raise UserError("length_histogram must count at least one sentence with a token")

    @classmethod
    def of(cls, model: ModelParts) -> "Description":
        """Describe a model."""
        return cls(
            model.process.args,
            model.denoiser.time_conditioning,
            model.max_length,
            model.length_histogram,
            model.pairs,
            model.text_format,
            model.facts,
        )

    def model(
        self,
        denoiser: NetworkDenoiser,
        process: Process,
        tokenizer: PreTrainedTokenizerBase,
        token_counts: Tensor,
        text_format: TextFormat,
    ) -> ModelParts:
        """Return the described model; its text is read in `text_format`, which may differ from the training's."""
        return ModelParts(
            denoiser=denoiser,
            process=process,
            tokenizer=tokenizer,
            token_counts=token_counts,
            length_histogram=self.length_histogram,
            max_length=self.max_length,
            facts=self.facts,
            pairs=self.pairs,
            text_format=text_format,
            training_format=self.text_format,
        )

    def write(self, folder: Path) -> None:
        """Write process.json."""
        entries = {
            "format": FORMAT,
            "process": process_name_of(self.process_args),
            "process_args": asdict(self.process_args),
            "time_conditioning": self.time_conditioning,
            "max_length": self.max_length,
            "length_histogram": self.length_histogram,
            "pairs": self.pairs and asdict(self.pairs),
            "text": None if self.pairs else self.text_format.as_saved(),
            "facts": self.facts,
        }
        (folder / FILE).write_text(json.dumps(entries, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, posterior: str = "") -> "Description":
        """Read process.json.

        Args:
            folder: the checkpoint.
            posterior: replaces the saved posterior of process=word_freq, unless empty.

        Raises:
            UserError: if it is missing or damaged, or its process or format is unknown.
        """
        entries = _entries(folder)
        name = entries["process"]
        if posterior and name != "word_freq":
            raise UserError(f"posterior={posterior} is for process=word_freq; checkpoint {folder} has process={name}")
        try:
            settings = {**entries["process_args"], **({"posterior": posterior} if posterior else {})}
            pairs = PairFormat(**entries["pairs"]) if entries.get("pairs") else None
            return cls(
                PROCESSES[name].settings(**settings),
                entries["time_conditioning"],
                entries["max_length"],
                entries["length_histogram"],
                pairs,
                TextFormat.from_saved(entries.get("text") or {}),
                entries.get("facts", {}),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # UserError is one
            raise UserError(f"checkpoint {folder}: process.json does not fit this version ({error})") from error


def _entries(folder: Path) -> dict:
    try:
        entries = json.loads(read_text(folder / FILE))
        name, version = entries["process"], entries["format"]
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {folder}: process.json is truncated or damaged ({error})") from error
    if not isinstance(name, str) or name not in PROCESSES:
        raise UserError(
            f"checkpoint {folder}: unknown process {shown(name)}; this version reads {', '.join(PROCESSES)}"
        )
    if version != FORMAT:
        raise UserError(f"checkpoint {folder}: format {version}, but this version reads format {FORMAT}")
    return entries
