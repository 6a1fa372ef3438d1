"""Settings of the network."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from utils.errors import UserError
from utils.packaged import PACKAGED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MOST_RANK = 4096
"""Largest rank of LoRA adapters."""
ARCHITECTURES = (
    "bert-base",
    "bert-small",
    "modernbert-small",
    "modernbert-local",
    "ddit-tiny",
    "ddit-small",
    "ddit-medium",
    "score-lm",
    "score-lm-small",
)
"""Names of `networks.PRESETS`, for --from_scratch true."""
TIME_CONDITIONINGS = ("none", "layerwise", "token")


@dataclass(frozen=True)
class NetworkArgs:
    """Settings of the denoising network and its time conditioning."""

    group: ClassVar[str] = "network"

    model_name_or_path: str = field(
        default="bert-base-uncased",
        metadata={
            "aliases": ["--model_type"],
            "help": f"hub name, folder, {', '.join(PACKAGED)} or architecture: {', '.join(ARCHITECTURES)}",
        },
    )
    from_scratch: bool = field(default=False, metadata={"help": "random weights; only the config is read"})
    config_overrides: str = field(default="", metadata={"help": "entries for from_scratch: hidden_size=256,..."})
    embedding_start: str = field(
        default="random",
        metadata={
            "choices": ["random", "neighbours"],
            "help": "start of new embeddings",
        },
    )
    time_conditioning: str = field(
        default="auto",
        metadata={
            "aliases": ["--timestep"],
            "choices": ["auto", *TIME_CONDITIONINGS],
            "help": "time input; none: TAD; layerwise: LTE; token: PTE; auto: layerwise for sedd, else none",
        },
    )
    attn_implementation: str = field(
        default="auto",
        metadata={"help": "sdpa, eager or flash_attention_2; auto: the fastest here that agrees with sdpa"},
    )
    compile: bool = field(
        default=False,
        metadata={"help": "compilation by torch.compile, for CUDA"},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recomputation of activations, for memory"})
    lora_rank: int = field(default=0, metadata={"help": "rank of LoRA adapters, the rest frozen; 0: none"})
    lora_targets: str = field(
        default="auto",
        metadata={"metavar": "NAME,...", "help": "linear maps with adapters, by name; auto: all in the layers"},
    )
    merge_lora: bool = field(default=False, metadata={"help": "checkpoints with the adapters merged into the weights"})
    first_layers: int = field(default=0, metadata={"help": "layers of a pretrained network to keep; 0: all"})
    dropout: float = field(default=-1.0, metadata={"help": "dropout of all layers; -1: the network's own"})

    def __post_init__(self) -> None:
        if self.dropout != -1 and not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout} must lie in [0, 1); -1: the network's own")
        if not 0 <= self.lora_rank <= MOST_RANK:
            raise UserError(f"lora_rank={self.lora_rank} must lie in 0..{MOST_RANK}; 0: no adapters")
        if not self.lora_rank and (self.merge_lora or self.lora_targets != "auto"):
            raise UserError("lora_targets and merge_lora are for lora_rank above 0; leave them out")
        if self.lora_rank and (self.from_scratch or self.first_layers):
            other = "from_scratch" if self.from_scratch else "first_layers"
            raise UserError(f"lora_rank={self.lora_rank} adapts a whole pretrained network; leave {other} out")
        if not 0 <= self.first_layers <= 1000:
            raise UserError(f"first_layers={self.first_layers} must lie in 0..1000; 0: all")

    def replaced(self, config: "PretrainedConfig") -> dict:
        """Return the entries of a configuration that --dropout and --first_layers replace.

        Raises:
            UserError: if the network has fewer layers, or its configuration does not number them.
        """
        names = (name for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float | int))
        found: dict = dict.fromkeys(names, self.dropout) if self.dropout >= 0 else {}
        if not self.first_layers:
            return found
        layers = getattr(config, "num_hidden_layers", 0)
        if not self.first_layers <= layers:
            raise UserError(f"first_layers={self.first_layers}, but {self.model_name_or_path} has {layers} layers")
        if types := getattr(config, "layer_types", None):  # ModernBERT names the attention of each layer
            found["layer_types"] = types[: self.first_layers]
        return found | {"num_hidden_layers": self.first_layers}
