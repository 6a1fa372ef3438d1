"""A checkpoint is a folder that explains itself: what sampling and scoring need is in it, and they take only its path.

    config.json, model.safetensors     the network, as save_pretrained writes it: stock transformers opens the folder
    tokenizer.json, ...                the tokenizer
    process.json                       which process, all of its settings, time conditioning, length histogram, metrics
    word_freq.json                     {token: count} of the training corpus
    time_conditioning.safetensors      only with time conditioning
    README.md                          how to use it

Nothing here is ever unpickled: safetensors and JSON only.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autoregressive import Autoregressive, AutoregressiveArgs
from diffusion_d3pm import D3pmArgs, D3pmDiffusion
from diffusion_mdlm import MdlmArgs, MdlmDiffusion
from diffusion_score import ScoreArgs, ScoreDiffusion
from diffusion_sedd import SeddArgs, SeddDiffusion
from diffusion_word_freq import WordFreqArgs, WordFreqDiffusion
from diffusion_word_freq_released import ReleasedConditionalDiffusion, ReleasedWordFreqDiffusion
from files import folder_written_whole, local_path, open_regular, read_text, written_whole
from models.bert import BertDenoiser, wrap
from models.dit import DitDenoiser
from models.networks import load_network, require_vocabulary
from models.score_denoiser import ScoreDenoiser
from pairs import PairFormat
from parallel import state_to_save
from pretrained import require_finite_weights
from process import Process, UserError, shown
from protocols import TextForm
from text_process import TextProcess
from vocabulary import load_tokenizer

FORMAT = 1


class Kind(NamedTuple):
    """What a name of a process stands for."""

    settings: type
    """A dataclass, saved with the checkpoint."""
    process: type[TextProcess]
    causal: bool = False
    """Whether its network sees only what is to the left."""
    continuous: bool = False
    """Whether its network reads noisy embeddings, not tokens."""


PROCESSES = {
    "word_freq": Kind(WordFreqArgs, WordFreqDiffusion),
    "mdlm": Kind(MdlmArgs, MdlmDiffusion),
    "d3pm": Kind(D3pmArgs, D3pmDiffusion),
    "sedd": Kind(SeddArgs, SeddDiffusion),
    "ar": Kind(AutoregressiveArgs, Autoregressive, causal=True),
    "score": Kind(ScoreArgs, ScoreDiffusion, continuous=True),
}
MOST = 10**15  # occurrences of a token: sums over a vocabulary stay exact


@dataclass
class Run:
    """Everything that belongs to one trained (or about to be trained) model."""

    denoiser: BertDenoiser | DitDenoiser | ScoreDenoiser
    process: Process
    process_args: object
    """Its settings."""
    tokenizer: PreTrainedTokenizerBase
    token_counts: Tensor
    """int64 [V], occurrences in the training corpus."""
    length_histogram: list[int]
    """Entry n: training sentences with n target tokens; of pairs, without the target's [SEP]."""
    max_length: int
    """Longest training sentence allowed, special tokens included."""
    facts: dict = field(default_factory=dict)
    """Step, validation metrics and the like; for people, not read back by any computation."""
    pairs: PairFormat | None = None
    """How pairs are written; None for a model of text."""
    form: TextForm = field(default_factory=TextForm)
    """How texts are read, of a model of text."""
    trained_on: str = ""
    """The protocol of its training text, of which `length_histogram` is; empty: that of `form`."""
    trained_detokenizer: str = ""
    """Likewise."""

    @property
    def causal(self) -> bool:
        """Whether its network sees only what is to the left."""
        return PROCESSES[self.process_name].causal

    @property
    def process_name(self) -> str:
        """As --process has it."""
        return name_of(self.process_args)

    def to(self, device: torch.device) -> "Run":
        """Move network and schedule; returns self."""
        self.denoiser.to(device)
        self.process.to(device)
        return self


def name_of(args: object) -> str:
    """Which process some settings are of."""
    return next(name for name, kind in PROCESSES.items() if type(args) is kind.settings)


def build_process(
    args: object,
    token_counts: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    *,
    of_pairs: bool = False,
    form: TextForm | None = None,
) -> TextProcess:
    """The process that `args` name. Text holds no special tokens, so p_theta rules them out; [UNK] is scored only.

    Args:
        args: the settings.
        token_counts: int64 [V].
        tokenizer: gives the special ids.
        vocab_size: rows of the network's output; ids the tokenizer does not know are ruled out too.
        of_pairs: whether [SEP] and [PAD] are content, as they are in a target window.
        form: how texts are read, where ends may be content, too.
    """
    kind = PROCESSES[name_of(args)].process
    if getattr(args, "posterior", "") == "released":
        kind = ReleasedConditionalDiffusion if of_pairs else ReleasedWordFreqDiffusion
    ends = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
    unknown = None if tokenizer.unk_token_id in ends else tokenizer.unk_token_id  # GPT-2 has one token for all of them
    special = {i for i in tokenizer.all_special_ids if i != unknown} - {tokenizer.mask_token_id}
    special -= {tokenizer.sep_token_id, tokenizer.pad_token_id} if of_pairs else set()
    special -= form.content(tokenizer) if form else set()
    single = not of_pairs and (form or TextForm()).protocol in ("unpadded", "padded")
    says_end = PROCESSES[name_of(args)].causal and single
    special -= {tokenizer.sep_token_id} if says_end else set()
    strangers = set(range(vocab_size)) - set(tokenizer.get_vocab().values())
    process = kind(
        args,
        token_counts,
        mask_id=tokenizer.mask_token_id,
        excluded_ids=tuple(sorted(special | strangers)),
        unsampled_ids=() if unknown is None else (unknown,),
    )
    if says_end:
        process.end_id = tokenizer.sep_token_id
    return process


# ---- word frequencies ------------------------------------------------------------------------------------------------


def write_word_freq(path: Path, token_counts: Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
    """{token: count} as JSON, most frequent first, tokens that never occur left out."""
    order = torch.argsort(token_counts, descending=True, stable=True).tolist()
    seen = {tokenizer.convert_ids_to_tokens(i): int(token_counts[i]) for i in order if token_counts[i] > 0}
    with written_whole(path) as file:
        json.dump(seen, file, ensure_ascii=False, indent=0)


def read_word_freq(path: Path, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Tensor:
    """Counts from {token: number} JSON, int64 [V]; relative frequencies are scaled so that the rarest counts once.

    Raises:
        UserError: if the file is no such JSON or names tokens that this tokenizer lacks.
    """
    remedy = "make them with word_freq.py"
    try:
        entries = json.loads(read_text(path).removeprefix("\ufeff"))
    except OSError as error:
        raise UserError(f"word frequencies {path}: cannot be read ({error.strerror}); {remedy}") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"word frequencies {path}: not JSON ({error}); {remedy}") from error
    if not isinstance(entries, dict) or not all(_is_count(number) for number in entries.values()):
        raise UserError(f"word frequencies {path}: must map tokens to numbers from 0 to {MOST:.0e}; {remedy}")
    vocabulary = tokenizer.get_vocab()
    strangers = [token for token in entries if token not in vocabulary]
    if strangers:
        raise UserError(
            f"word frequencies {path}: of another vocabulary: {len(strangers)} of {len(entries)} tokens, "
            f"e.g. {strangers[0]!r}, are not in this tokenizer; count again with word_freq.py --tokenizer"
        )
    numbers = torch.zeros(vocab_size, dtype=torch.float64)
    for token, number in entries.items():
        numbers[vocabulary[token]] = number
    if not numbers.any():
        raise UserError(f"word frequencies {path}: no token has a count above 0; {remedy}")
    if (numbers != numbers.round()).any():
        numbers = numbers / numbers[numbers > 0].min()
    if numbers.max() > MOST:
        raise UserError(f"word frequencies {path}: the commonest is more than {MOST:.0e} times the rarest; {remedy}")
    return numbers.round().long()


def _is_count(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= MOST


# ---- save and load ---------------------------------------------------------------------------------------------------


def weights_of(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the network, and of what tells it the time; of a network in shards, every process must ask."""
    return state_to_save(run.denoiser.network), state_to_save(run.denoiser.time or nn.Module())


def save(path: Path, run: Run, weights: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None) -> None:
    """Write a run beside `path` and rename it there; an earlier checkpoint of that name is replaced at once."""
    of_network, of_time = weights or weights_of(run)
    with folder_written_whole(path) as folder:
        run.denoiser.network.save_pretrained(folder, state_dict=dict(of_network))  # it empties what it is given
        run.tokenizer.save_pretrained(folder)
        if of_time:
            save_file(of_time, folder / "time_conditioning.safetensors")
        write_word_freq(folder / "word_freq.json", run.token_counts, run.tokenizer)
        description = {
            "format": FORMAT,
            "process": run.process_name,
            "process_args": asdict(run.process_args),
            "time_conditioning": run.denoiser.time_conditioning,
            "max_length": run.max_length,
            "length_histogram": run.length_histogram,
            "pairs": run.pairs and asdict(run.pairs),
            "text": None if run.pairs else asdict(run.form),
            "facts": run.facts,
        }
        (folder / "process.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        (folder / "README.md").write_text(_model_card(run), encoding="utf-8")


def load(name: str, device: torch.device, *, posterior: str = "", **of_text: str) -> Run:
    """A run from its folder; needs nothing but the path.

    Args:
        name: the folder, or an output folder of main.py that holds one.
        device: where to put it.
        posterior: replaces the checkpoint's own choice (exact or released) if given.
        of_text: protocol and detokenizer do the same, of a model of text.

    Raises:
        UserError: if the folder is missing, truncated, or of another process.
    """
    path = find_checkpoint(name)
    refuse_links(path)
    description = _read_description(path)
    if posterior and description["process"] != "word_freq":
        raise UserError(
            f"posterior={posterior} is for process=word_freq; checkpoint {path} is of {description['process']}"
        )
    try:
        chosen = {"posterior": posterior} if posterior else {}
        kind = PROCESSES[description["process"]]
        process_args = kind.settings(**{**description["process_args"], **chosen})
        time_conditioning = description["time_conditioning"]
        max_length, histogram = _read_lengths(description)
        pairs = PairFormat(**description["pairs"]) if description.get("pairs") else None
        trained = TextForm(**(description.get("text") or {}))
        form = replace(trained, **{k: v for k, v in of_text.items() if v})
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # UserError is one
        raise UserError(f"checkpoint {path}: process.json does not fit this version ({error})") from error
    network = load_network(str(path), whole=True, causal=kind.causal)
    tokenizer = load_tokenizer(str(path))
    try:
        process_args.check_time(time_conditioning)
        kinds = {"causal": kind.causal, "continuous": kind.continuous}
        denoiser = wrap(network, time_conditioning, process_args.time_period, **kinds)
        require_vocabulary(str(path), denoiser.vocab_size, tokenizer)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    if denoiser.time is not None:
        _load_time_conditioning(denoiser.time, path / "time_conditioning.safetensors")
    counts = read_word_freq(path / "word_freq.json", tokenizer, denoiser.vocab_size)
    process = build_process(process_args, counts, tokenizer, denoiser.vocab_size, of_pairs=pairs is not None, form=form)
    form.check_process(flat=getattr(process, "flat", True))
    facts = description.get("facts", {})
    run = Run(denoiser.eval(), process, process_args, tokenizer, counts, histogram, max_length, facts, pairs, form)
    run.trained_on, run.trained_detokenizer = trained.protocol, trained.detokenizer
    return run.to(device)


def find_checkpoint(name: str) -> Path:
    """The checkpoint folder meant by `name`.

    Raises:
        UserError: if there is none.
    """
    path = local_path(name)
    if path.is_file():
        raise UserError(
            f"checkpoint {path}: is a file; a checkpoint is a folder made by main.py (no pickle is ever loaded)"
        )
    if not path.is_dir():
        raise UserError(
            f"checkpoint {path}: no such folder; train one with main.py --output_dir, or `bash run.sh demo`"
        )
    if not (path / "process.json").exists() and (path / "checkpoint" / "process.json").exists():
        return path / "checkpoint"
    if not (path / "process.json").exists():
        raise UserError(f"checkpoint {path}: not a DiffusionBERT checkpoint (it has no process.json)")
    return path


def refuse_links(path: Path) -> None:
    """Refuses a folder that shows files of elsewhere as its own (the hub's cache keeps its files in ../../blobs).

    Raises:
        UserError: naming one of them.
    """
    homes = (path.resolve(), path.resolve().parent.parent / "blobs")
    for file in path.rglob("*"):
        if file.is_symlink() and not any(file.resolve().is_relative_to(home) for home in homes):
            raise UserError(f"checkpoint {path}: {file.name} is a link out of the folder; copy what it links to")


def _read_description(path: Path) -> dict:
    try:
        description = json.loads(read_text(path / "process.json"))
        found = description["process"], description["format"]
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path}: process.json is truncated or damaged ({error})") from error
    if not isinstance(found[0], str) or found[0] not in PROCESSES:
        raise UserError(f"checkpoint {path}: of another process, {shown(found[0])}; known are {', '.join(PROCESSES)}")
    if found[1] != FORMAT:
        raise UserError(f"checkpoint {path}: format {found[1]}, this version reads format {FORMAT}")
    return description


def _read_lengths(description: dict) -> tuple[int, list[int]]:
    max_length, histogram = description["max_length"], description["length_histogram"]
    if type(max_length) is not int or not 3 <= max_length <= 10**6:
        raise UserError(f"max_length={max_length!r} must be a whole number in 3..1000000")
    if (
        not isinstance(histogram, list)
        or len(histogram) > 10**6 + 1
        or not all(type(n) is int and 0 <= n <= MOST for n in histogram)
    ):
        raise UserError("length_histogram must be a list of counts")
    if not any(histogram[1:]):
        raise UserError("length_histogram counts no sentence with a token")
    return max_length, histogram


def _load_time_conditioning(module: torch.nn.Module, file: Path) -> None:
    try:
        open_regular(file).close()
        module.load_state_dict(load_file(file))
        require_finite_weights(module, str(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {file.parent}: {file.name} is missing, truncated or of another size ({reason})"
        ) from error


def _after_import(run: Run) -> str:
    own = type(run.denoiser.network).__module__
    return f" after `import {own}` of this project" if own.startswith("models.") else ""


def _model_card(run: Run) -> str:
    chosen = {**asdict(run.process_args), **asdict(run.pairs or run.form)}
    settings = "\n".join(f"| {name} | {value} |" for name, value in chosen.items())
    script, more = ("predict_downstream_condition.py", " --data FILE") if run.pairs else ("predict.py", "")
    facts = "\n".join(f"| {name} | {value} |" for name, value in run.facts.items())
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [diffusion, masked-diffusion, diffusionbert]
---
# A DiffusionBERT checkpoint

Sample: `python {script} --checkpoint DIR{more}`. Score: `python compute_elbo.py --checkpoint DIR --data FILE`.
The network alone opens with `transformers.AutoModelForMaskedLM.from_pretrained`{_after_import(run)}.

| setting of the process | value |
|---|---|
{settings}
| time_conditioning | {run.denoiser.time_conditioning} |

| fact | value |
|---|---|
{facts}
"""
