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
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from checkpoint.text_model import PROCESSES, TextModel, build_process
from data.pairs import PairFormat
from data.row_formats import RowFormat
from data.tokenizers import load_tokenizer
from data.word_counts import MOST_COUNT, read_word_freq, write_word_freq
from models.factory import make_denoiser
from models.networks import load_network, require_vocabulary
from models.pretrained import require_finite_weights
from utils.errors import UserError, shown
from utils.files import folder_written_whole, local_path, open_regular, read_text
from utils.gathering import state_to_save

FORMAT = 1


# ---- save and load ---------------------------------------------------------------------------------------------------


def weights_of(run: TextModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the network, and of what tells it the time; of a network in shards, every process must ask."""
    return state_to_save(run.denoiser.network), state_to_save(run.denoiser.time or nn.Module())


def save_checkpoint(
    path: Path, run: TextModel, weights: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
) -> None:
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


def load_checkpoint(name: str, device: torch.device, *, posterior: str = "", **of_text: str) -> TextModel:
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
        trained = RowFormat(**(description.get("text") or {}))
        form = replace(trained, **{k: v for k, v in of_text.items() if v})
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # UserError is one
        raise UserError(f"checkpoint {path}: process.json does not fit this version ({error})") from error
    network = load_network(str(path), whole=True, causal=kind.causal)
    tokenizer = load_tokenizer(str(path))
    try:
        process_args.check_time(time_conditioning)
        kinds = {"causal": kind.causal, "continuous": kind.continuous}
        denoiser = make_denoiser(network, time_conditioning, process_args.time_period, **kinds)
        require_vocabulary(str(path), denoiser.vocab_size, tokenizer)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    if denoiser.time is not None:
        _load_time_conditioning(denoiser.time, path / "time_conditioning.safetensors")
    counts = read_word_freq(path / "word_freq.json", tokenizer, denoiser.vocab_size)
    process = build_process(process_args, counts, tokenizer, denoiser.vocab_size, of_pairs=pairs is not None, form=form)
    form.check_process(flat=getattr(process, "flat", True))
    facts = description.get("facts", {})
    run = TextModel(
        denoiser.eval(), process, process_args, tokenizer, counts, histogram, max_length, facts, pairs, form
    )
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
        or not all(type(n) is int and 0 <= n <= MOST_COUNT for n in histogram)
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


def _after_import(run: TextModel) -> str:
    own = type(run.denoiser.network).__module__
    return f" after `import {own}` of this project" if own.startswith("models.") else ""


def _model_card(run: TextModel) -> str:
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
