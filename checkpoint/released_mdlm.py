"""Weights that MDLM's authors released: a Lightning checkpoint (.ckpt), or a folder as on the hub (mdlm-owt).

A .ckpt is a pickle. It is opened by torch's weights-only reader, which builds tensors and plain containers and runs
nothing; the settings and the tokenizer that Lightning keeps beside them become empty stand-ins, and any other name in
the file is a refusal.
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
MOST_BLOCKS = 1000
GROWING = {
    "builtins bytearray", "__builtin__ bytearray", "hex", "hex_codec", "base64", "base64_codec", "base_64", "uu",
    "uu_codec", "quopri", "quopri_codec", "zlib", "zlib_codec", "bz2", "bz2_codec", "unicode_escape",
    "raw_unicode_escape", "utf_7", "utf-7",
}  # fmt: skip
"""What makes much of little when it is called: a buffer of any size, and encodings that lengthen."""
MOST_PACKED = 2**20
"""Bytes by which an archive's entries may exceed it."""


class StandIn:
    """Of an object that is not wanted: it takes whatever it is given and keeps nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        """Nothing."""

    def __setstate__(self, state: object) -> None:
        """Nothing."""


IGNORED = ("omegaconf.", "transformers.", "tokenizers.", "typing.", "pathlib.")
"""Packages whose objects Lightning keeps beside the weights: a run's settings, and its tokenizer."""
PLAIN = {f"builtins.{kind.__name__}" for kind in (dict, list, int, float, str, bool, tuple, set, bytes)}
"""Types that settings refer to."""


FACTORIES = {"collections.defaultdict": collections.defaultdict}


def read_weights(path: Path, *, averaged: bool) -> dict[str, Tensor]:
    """Tensors of the network by its own names, in the order of its parameters.

    Args:
        path: a .ckpt, or a folder with model.safetensors.
        averaged: of a .ckpt, the moving average, which the authors score and sample with.

    Raises:
        UserError: if it cannot be read, or holds anything but what is expected.
    """
    try:
        open_regular(path / "model.safetensors" if path.is_dir() else path).close()
        if path.is_dir():
            held, shadow = load_file(path / "model.safetensors"), None
        else:
            held, shadow = _read_lightning(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); give a .ckpt, or a folder of the hub"
        ) from error
    own = {name: tensor for name, tensor in held.items() if isinstance(name, str) and name.startswith(PREFIX)}
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in own.items()}
    if not weights or not all(map(_is_plain, weights.values())):
        raise UserError(f"{path}: no plain tensors named {PREFIX}... in it; MDLM's checkpoints have them")
    weights = _averaged(path, weights, shadow) if averaged and shadow is not None else weights
    for name, tensor in weights.items():  # a few bytes may claim to be a large tensor
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} is larger than what is stored of it")
    return weights


def _is_plain(tensor: object) -> bool:
    """Whether it is a tensor with its numbers in memory: not one that only claims a size, sparse or quantised."""
    if not isinstance(tensor, Tensor) or tensor.is_quantized:
        return False
    return tensor.device.type == "cpu" and tensor.layout == torch.strided


def require_no_growth(path: Path) -> None:
    """Refuse a pickle in which a text is encoded again and again, each time to twice its length; nothing of it is run.

    Raises:
        UserError: naming the file.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.endswith(".pkl"):
                for code, argument, _ in pickletools.genops(archive.read(entry)):
                    if code.name == "STACK_GLOBAL" or str(argument).lower() in GROWING:
                        raise UserError(
                            f"{path}: refused, since it holds {shown(str(argument))}, which settings do not"
                        )


def require_stored(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is: torch stores its tensors as they are.

    Raises:
        UserError: with both sizes.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size + MOST_PACKED:
            raise UserError(f"{path}: {size:,} bytes that unpack to {unpacked:,}; torch does not pack its files so")


def _read_lightning(path: Path) -> tuple[dict, object]:
    try:
        require_stored(path)
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: not a checkpoint of Lightning, which is a zip archive; give another file")
        require_no_growth(path)
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)  # read off the file, which is not run
        strangers = [name for name in named if not name.startswith(IGNORED) and name not in PLAIN | FACTORIES.keys()]
        if strangers:
            raise UserError(f"{path}: refused, since it names {strangers[0]}; only tensors and settings are read")
        with torch.serialization.safe_globals([(FACTORIES.get(name, StandIn), name) for name in named]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, UserError):
        raise
    except Exception as error:  # what damaged bytes run into
        raise UserError(f"{path}: not a checkpoint of Lightning ({type(error).__name__}); give another file") from error
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
        raise UserError(f"{path}: no state_dict in it; a Lightning checkpoint has one")
    average = found.get("ema")
    return found["state_dict"], average.get("shadow_params") if isinstance(average, dict) else None


def _averaged(path: Path, weights: dict[str, Tensor], shadow: object) -> dict[str, Tensor]:
    """The average is a list; the order is that of the parameters, which is that of their names in the file."""
    names = [name for name in weights if not name.endswith("inv_freq")]
    shapes = [tensor.shape for tensor in shadow] if isinstance(shadow, list) and all(map(_is_plain, shadow)) else []
    if shapes != [weights[name].shape for name in names]:
        raise UserError(f"{path}: its average does not fit its network; give --averaged false")
    return {**weights, **dict(zip(names, shadow, strict=True))}


def network_of(weights: dict[str, Tensor], *, model_length: int, n_heads: int = 0) -> DitNetwork:
    """A network of those weights, its sizes read off them, float32.

    Args:
        weights: from `read_weights`.
        model_length: tokens of a text.
        n_heads: 0: as the rotary frequencies tell.

    Raises:
        UserError: if the weights are not those of such a network.
    """
    try:
        (vocab_size, dim), rotary = weights["vocab_embed.embedding"].shape, weights.get("rotary_emb.inv_freq")
        if not n_heads and rotary is None:
            raise UserError("the weights do not tell how many heads there are; give --n_heads")
        blocks = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
        if len(blocks) > MOST_BLOCKS:
            raise UserError(f"{len(blocks):,} blocks, more than the {MOST_BLOCKS:,} that a network may have")
        if blocks != set(range(len(blocks))):
            raise UserError(f"block {max(blocks)} of {len(blocks)}: some are missing")
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
        raise UserError(f"these are not the weights of MDLM's network ({(lines[1:] or lines)[0].strip()})") from error
    return network
