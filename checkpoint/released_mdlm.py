"""Reading of weights released by MDLM's authors: a Lightning checkpoint (.ckpt) or a hub folder (mdlm-owt).

A .ckpt is a pickle. torch's weights-only reader opens it, which builds tensors and plain containers and runs no code.
The settings and the tokenizer that Lightning saves with them become empty placeholders. A file that names any other
type is refused.
"""

import collections
import pickletools
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.dit import DitConfig, DitNetwork
from utils.errors import UserError, shown
from utils.files import open_regular
from utils.hub import first_line

PREFIX = "backbone."
MAX_BLOCKS = 1000
EXPANDING_NAMES = {
    "builtins bytearray", "__builtin__ bytearray", "hex", "hex_codec", "base64", "base64_codec", "base_64", "uu",
    "uu_codec", "quopri", "quopri_codec", "zlib", "zlib_codec", "bz2", "bz2_codec", "unicode_escape",
    "raw_unicode_escape", "utf_7", "utf-7",
}  # fmt: skip
"""Types and encodings whose output can be far larger than their input."""
MAX_EXPANSION = 2**20
"""Bytes by which the entries of an archive may exceed its size."""


class Placeholder:
    """Empty object in place of one that is not needed; it discards its arguments and state."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


IGNORED = ("omegaconf.", "transformers.", "tokenizers.", "typing.", "pathlib.")
"""Packages whose objects Lightning saves with the weights: settings and tokenizer of the run."""
PLAIN = {f"builtins.{kind.__name__}" for kind in (dict, list, int, float, str, bool, tuple, set, bytes)}
"""Built-in types that the settings refer to."""
FACTORIES = {"collections.defaultdict": collections.defaultdict}
"""Types that are built as themselves."""


def read_weights(path: Path, *, averaged: bool) -> dict[str, Tensor]:
    """Read the network's tensors by name, in the order of its parameters.

    Args:
        path: a .ckpt, or a folder with model.safetensors.
        averaged: read the moving average of a .ckpt, which the authors score and sample with.

    Raises:
        UserError: if it cannot be read, or holds other types than tensors and settings.
    """
    try:
        open_regular(path / "model.safetensors" if path.is_dir() else path).close()
        if path.is_dir():
            held, shadow = load_file(path / "model.safetensors"), None
        else:
            held, shadow = _read_lightning(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); give a .ckpt, or a folder downloaded from the hub"
        ) from error
    own = {name: tensor for name, tensor in held.items() if isinstance(name, str) and name.startswith(PREFIX)}
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in own.items()}
    if not weights or not all(map(_is_plain, weights.values())):
        raise UserError(f"{path}: it has no plain tensors named {PREFIX}...; give a checkpoint of MDLM")
    weights = _averaged(path, weights, shadow) if averaged and shadow is not None else weights
    for name, tensor in weights.items():  # a few stored bytes may be declared as a large tensor
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} is larger than its stored data; the file is damaged")
    return weights


def _is_plain(tensor: object) -> bool:
    """Accept dense CPU tensors only: no meta, sparse or quantized tensor."""
    if not isinstance(tensor, Tensor) or tensor.is_quantized:
        return False
    return tensor.device.type == "cpu" and tensor.layout == torch.strided


def refuse_expanding_pickle(path: Path) -> None:
    """Refuse a pickle that could expand in memory, such as a string encoded repeatedly; it is scanned, not run.

    Raises:
        UserError: naming the file and the name found in it.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.endswith(".pkl"):
                for code, argument, _ in pickletools.genops(archive.read(entry)):
                    if code.name == "STACK_GLOBAL" or str(argument).lower() in EXPANDING_NAMES:
                        raise UserError(
                            f"{path}: refused, since it names {shown(str(argument))}; only tensors and settings are "
                            "read"
                        )


def refuse_compressed(path: Path) -> None:
    """Refuse an archive whose entries are larger than the file; torch stores tensors uncompressed.

    Raises:
        UserError: with both sizes.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size + MAX_EXPANSION:
            raise UserError(
                f"{path}: {size:,} bytes that unpack to {unpacked:,}; give a file that torch wrote, "
                "which is not compressed"
            )


def _read_lightning(path: Path) -> tuple[dict, object]:
    """Return the state dict and the list of averaged tensors of a Lightning checkpoint."""
    try:
        refuse_compressed(path)
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: not a Lightning checkpoint, which is a zip archive; give another file")
        refuse_expanding_pickle(path)
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)  # scans the file without running it
        refused = [name for name in named if not name.startswith(IGNORED) and name not in PLAIN | FACTORIES.keys()]
        if refused:
            raise UserError(f"{path}: refused, since it names {refused[0]}; only tensors and settings are read")
        with torch.serialization.safe_globals([(FACTORIES.get(name, Placeholder), name) for name in named]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, UserError):
        raise
    except Exception as error:  # a damaged file may raise any type
        raise UserError(f"{path}: not a Lightning checkpoint ({type(error).__name__}); give another file") from error
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
        raise UserError(f"{path}: it has no state_dict; give a Lightning checkpoint")
    average = found.get("ema")
    return found["state_dict"], average.get("shadow_params") if isinstance(average, dict) else None


def _averaged(path: Path, weights: dict[str, Tensor], shadow: object) -> dict[str, Tensor]:
    """Replace weights by their moving averages, a list in the order of the parameters' names in the file."""
    names = [name for name in weights if not name.endswith("inv_freq")]
    shapes = [tensor.shape for tensor in shadow] if isinstance(shadow, list) and all(map(_is_plain, shadow)) else []
    if shapes != [weights[name].shape for name in names]:
        raise UserError(f"{path}: the averaged weights do not fit the network; give --averaged false")
    return {**weights, **dict(zip(names, shadow, strict=True))}


def network_of(weights: dict[str, Tensor], *, model_length: int, n_heads: int = 0) -> DitNetwork:
    """Build the float32 network of released weights; its sizes are derived from their shapes.

    Args:
        weights: from `read_weights`.
        model_length: number of tokens of a text.
        n_heads: number of attention heads; 0: derived from the rotary frequencies.

    Raises:
        UserError: if the weights are not those of MDLM's network.
    """
    try:
        (vocab_size, dim), rotary = weights["vocab_embed.embedding"].shape, weights.get("rotary_emb.inv_freq")
        if not n_heads and rotary is None:
            raise UserError("the number of heads cannot be derived from the weights; give --n_heads")
        blocks = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
        if len(blocks) > MAX_BLOCKS:
            raise UserError(f"{len(blocks):,} blocks, more than the {MAX_BLOCKS:,} allowed; the file is damaged")
        if blocks != set(range(len(blocks))):
            raise UserError(f"blocks up to {max(blocks)}, but only {len(blocks)} of them; the file is incomplete")
        causal = "sigma_map.mlp.2.weight" not in weights
        config = DitConfig(
            vocab_size=vocab_size,
            model_length=model_length,
            hidden_dim=dim,
            cond_dim=128 if causal else len(weights["sigma_map.mlp.2.weight"]),
            n_blocks=len(blocks),
            n_heads=n_heads or dim // (2 * len(rotary)),
            causal=causal,
        )
        network = DitNetwork(config)
        given = {**network.backbone.state_dict(), **weights} if rotary is None else weights
        network.backbone.load_state_dict({name: tensor.float() for name, tensor in given.items()}, strict=True)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        lines = str(error).splitlines()
        reason = (lines[1:] or lines)[0].strip()
        raise UserError(f"these are not the weights of MDLM's network ({reason}); give others") from error
    return network
