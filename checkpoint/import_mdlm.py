"""Make a checkpoint that all scripts here take out of one that MDLM's authors released.

python -m checkpoint.import_mdlm --source mdlm.ckpt --tokenizer gpt2 --output_dir out/mdlm-owt
python -m checkpoint.import_mdlm --source kuleshov-group-mdlm-owt-folder --tokenizer gpt2 --output_dir out/mdlm-owt
python -m checkpoint.import_mdlm --source lm1b.ckpt --tokenizer bert-base-uncased --protocol padded \
    --max_length 128 --output_dir out/mdlm-lm1b
python -m checkpoint.import_mdlm --source ar.ckpt --tokenizer gpt2 --process ar --output_dir out/ar-owt
python -m checkpoint.import_mdlm --source sedd.ckpt --tokenizer gpt2 --process sedd --time_conditioning layerwise \
    --output_dir out
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from checkpoint.folder import save_checkpoint
from checkpoint.released_mdlm import network_of, read_weights
from checkpoint.text_model import PROCESSES, TextModel, build_process
from data.row_formats import ROW_FORMATS, RowFormat
from data.tokenizer_checks import check_tokenizer
from data.tokenizers import load_tokenizer, read_tokenizer, vocabulary_size
from models.factory import make_denoiser
from utils import distributed, files, hub
from utils.command_line import parse, run_script
from utils.errors import UserError, check_choices, check_ranges


@dataclass(frozen=True)
class ImportArgs:
    """What to read, and where to write it."""

    source: str = field(metadata={"help": "a Lightning .ckpt, or a folder with config.json and model.safetensors"})
    tokenizer: str = field(metadata={"help": "a folder or a name on the hub: gpt2, or bert-base-uncased for LM1B"})
    output_dir: str = field(metadata={"help": "a new folder"})
    process: str = field(default="mdlm", metadata={"choices": ["mdlm", "sedd", "ar"], "help": "what it was trained as"})
    averaged: bool = field(default=True, metadata={"help": "of a .ckpt, the moving average of the weights"})
    time_conditioning: str = field(
        default="none", metadata={"choices": ["none", "layerwise"], "help": "layerwise: it is told sigma (SEDD is)"}
    )
    protocol: str = field(
        default="wrapped",
        metadata={"choices": list(ROW_FORMATS), "help": "of its training: wrapped; of LM1B's network padded"},
    )
    max_length: int = field(default=1024, metadata={"help": "tokens of a text"})
    n_heads: int = field(default=0, metadata={"help": "0: as the weights tell"})

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, max_length=(3, 10**6), n_heads=(0, 10**4))


def main() -> None:
    """Read, check, write, say what to do next."""
    (args,) = parse([ImportArgs], __doc__)
    distributed.require_single("checkpoint/import_mdlm.py")
    hub.quiet_libraries()
    output, source = Path(args.output_dir), files.local_path(args.source)
    files.require_writable("output_dir", output, folder=True)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"output_dir={output} is not empty; give a new folder")
    if not source.exists():
        raise UserError(f"source={source}: no such file or folder")
    network = network_of(
        read_weights(source, averaged=args.averaged), model_length=args.max_length, n_heads=args.n_heads
    )
    kind = PROCESSES[args.process]
    settings = kind.settings()
    settings.check_time(args.time_conditioning)
    if network.config.causal != kind.causal:
        raise UserError(
            f"process={args.process}: this network {'sees its left only' if not kind.causal else 'sees all'}"
        )
    tokenizer = open_tokenizer(args.tokenizer)
    if vocabulary_size(tokenizer) > network.config.vocab_size:
        known = network.config.vocab_size
        raise UserError(f"tokenizer={args.tokenizer} has {vocabulary_size(tokenizer)} tokens, the network {known}")
    denoiser = make_denoiser(network, args.time_conditioning, settings.time_period, causal=kind.causal)
    counts = torch.ones(network.config.vocab_size, dtype=torch.long)  # of the training text nothing is known
    form = RowFormat(args.protocol)
    process = build_process(settings, counts, tokenizer, network.config.vocab_size, form=form)
    histogram = [0] * (args.max_length - 2) + [1]
    facts = {"source": source.name}
    run = TextModel(denoiser, process, settings, tokenizer, counts, histogram, args.max_length, facts, form=form)
    save_checkpoint(output, run)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters written to {output}")
    print(f"next: python predict.py --checkpoint {shlex.quote(str(output))} --num_samples 4")


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """As MDLM uses it: GPT-2's end of text stands before and after a text, and [MASK] is one token more.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return load_tokenizer(name)
    except UserError as error:
        if "no mask" not in str(error):
            raise
    path = files.local_path(name)
    tokenizer = read_tokenizer(str(path) if path.exists() else hub.fetch(name, hub.OF_A_TOKENIZER))
    check_tokenizer(tokenizer, name, roles=())
    end = tokenizer.eos_token
    if end is None:
        raise UserError(f"tokenizer {name}: no end of text; MDLM's tokenizers have one")
    tokenizer.add_special_tokens({"mask_token": "[MASK]", "cls_token": end, "sep_token": end, "pad_token": end})
    return tokenizer


if __name__ == "__main__":
    run_script(main)
