"""Convert a checkpoint released by MDLM's authors into a checkpoint of this project.

python -m checkpoint.import_mdlm --source mdlm.ckpt --tokenizer gpt2 --output_dir out/mdlm-owt
python -m checkpoint.import_mdlm --source kuleshov-group-mdlm-owt-folder --tokenizer gpt2 --output_dir out/mdlm-owt
python -m checkpoint.import_mdlm --source lm1b.ckpt --tokenizer bert-base-uncased --row_format padded \
    --max_length 128 --output_dir out/mdlm-lm1b
python -m checkpoint.import_mdlm --source ar.ckpt --tokenizer gpt2 --process ar --output_dir out/ar-owt
python -m checkpoint.import_mdlm --source sedd.ckpt --tokenizer gpt2 --process sedd --time_conditioning layerwise \
    --output_dir out
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from data.options import ROW_FORMATS, TextFormat
from utils import files, hub, job
from utils.command_line import parse, run_script
from utils.errors import UserError, check_choices, check_ranges

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from checkpoint.model_parts import ModelParts


@dataclass(frozen=True)
class ImportArgs:
    """Source, destination and properties of the released checkpoint."""

    group: ClassVar[str] = "import"

    source: str = field(metadata={"help": "Lightning .ckpt, or folder with config.json and model.safetensors"})
    tokenizer: str = field(metadata={"help": "tokenizer folder or hub name: gpt2, or bert-base-uncased for LM1B"})
    output_dir: str = field(metadata={"help": "new folder for the checkpoint"})
    process: str = field(
        default="mdlm", metadata={"choices": ["mdlm", "sedd", "ar"], "help": "process the network was trained with"}
    )
    averaged: bool = field(default=True, metadata={"help": "moving average of the weights, if the source is a .ckpt"})
    time_conditioning: str = field(
        default="none",
        metadata={"choices": ["none", "layerwise"], "help": "time input; layerwise: sigma modulates the layers (SEDD)"},
    )
    row_format: str = field(
        default="wrapped",
        metadata={
            "aliases": ["--protocol"],
            "choices": list(ROW_FORMATS),
            "help": "row format of the training text; padded for the LM1B network",
        },
    )
    max_length: int = field(default=1024, metadata={"help": "number of tokens of a text"})
    n_heads: int = field(default=0, metadata={"help": "number of attention heads; 0: derived from the weights"})

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, max_length=(3, 10**6), n_heads=(0, 10**4))


def main() -> None:
    """Convert the checkpoint and print the next command."""
    (args,) = parse([ImportArgs], __doc__)
    job.require_single("checkpoint.import_mdlm")
    hub.quiet_libraries()
    # imported here, since --help and refused settings need no torch
    from checkpoint.folder import save_checkpoint

    output, source = Path(args.output_dir), files.local_path(args.source)
    files.require_writable("output_dir", output, folder=True)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"output_dir={output} is not empty; give a new folder")
    if not source.exists():
        raise UserError(f"source={source}: no such file or folder")
    model = convert(source, args)
    save_checkpoint(output, model)
    print(f"{sum(p.numel() for p in model.denoiser.network.parameters()):,} parameters written to {output}")
    print(f"next: python predict.py --checkpoint {shlex.quote(str(output))} --num_samples 4")


def convert(source: Path, args: ImportArgs) -> ModelParts:
    """Read released weights and combine them with tokenizer and process.

    Raises:
        UserError: if the weights cannot be read, or do not fit the process or the tokenizer.
    """
    import torch

    from checkpoint.model_parts import PROCESSES, ModelParts, build_process
    from checkpoint.released_mdlm import network_of, read_weights
    from data.tokenizers import vocabulary_size
    from models.factory import make_denoiser

    network = network_of(
        read_weights(source, averaged=args.averaged), model_length=args.max_length, n_heads=args.n_heads
    )
    kind = PROCESSES[args.process]
    settings = kind.settings()
    settings.check_time(args.time_conditioning)
    if network.config.causal != kind.causal:
        found, right = ("causal", "ar") if network.config.causal else ("bidirectional", "mdlm or sedd")
        raise UserError(f"process={args.process}: the network has {found} attention; give --process {right}")
    tokenizer = open_tokenizer(args.tokenizer)
    vocab_size = network.config.vocab_size
    if vocabulary_size(tokenizer) > vocab_size:
        raise UserError(
            f"tokenizer={args.tokenizer} has {vocabulary_size(tokenizer)} tokens, more than the network's "
            f"{vocab_size}; give the tokenizer of its training"
        )
    denoiser = make_denoiser(network, args.time_conditioning, settings.time_period, causal=kind.causal)
    counts = torch.ones(vocab_size, dtype=torch.long)  # the training text's counts are unknown
    text_format = TextFormat(args.row_format)
    process = build_process(settings, counts, tokenizer, vocab_size, text_format=text_format)
    return ModelParts(
        denoiser=denoiser,
        process=process,
        tokenizer=tokenizer,
        token_counts=counts,
        length_histogram=[0] * (args.max_length - 2) + [1],  # lengths are unknown too: one text of the full length
        max_length=args.max_length,
        facts={"source": source.name},
        text_format=text_format,
    )


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer with MDLM's special tokens.

    GPT-2 has neither [CLS] nor [SEP] nor [MASK]: its end of text encloses each text, and [MASK] is added.

    Raises:
        UserError: if it cannot be read, or has no end of text.
    """
    from data.tokenizer_checks import check_tokenizer
    from data.tokenizers import load_tokenizer, read_tokenizer

    try:
        return load_tokenizer(name)
    except UserError as error:
        if "no mask" not in str(error):
            raise
    path = files.local_path(name)
    tokenizer = read_tokenizer(str(path) if path.exists() else hub.fetch(name, hub.TOKENIZER_FILES))
    check_tokenizer(tokenizer, name, roles=())
    end = tokenizer.eos_token
    if end is None:
        raise UserError(f"tokenizer {name}: it has no end-of-text token; give a tokenizer that MDLM uses")
    tokenizer.add_special_tokens({"mask_token": "[MASK]", "cls_token": end, "sep_token": end, "pad_token": end})
    return tokenizer


if __name__ == "__main__":
    run_script(main)
