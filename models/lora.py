"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685) in a pretrained network, by the `peft` library.

A linear map W x becomes W x + (alpha / r) B A x with W frozen, A [r, in] random and B [out, r] zero at first. The
network keeps its class and its layout, so a denoiser works the same with and without adapters.
"""

from torch import Tensor, nn
from transformers import PreTrainedModel

from models.denoiser import NetworkDenoiser
from utils.errors import UserError, shown
from utils.hub import first_line

ADAPTER = "default"
ALPHA = 2
"""Ratio of alpha to the rank."""
INSTALL = "pip install peft (the version in requirements-optional.txt)"


def add_lora(denoiser: NetworkDenoiser, rank: int, targets: str) -> None:
    """Freeze the network and add adapters to some of its linear maps.

    Args:
        denoiser: denoiser with a pretrained network; parameters of its time conditioning stay trainable.
        rank: r.
        targets: names of linear maps by comma, the ends of their full names; auto: all within the layers.

    Raises:
        UserError: if peft is not installed, the network's head is new, or no linear map has such a name.
    """
    network = denoiser.network
    if new := getattr(network, "new_tensors", ()):
        raise UserError(
            f"lora_rank={rank} freezes the network, but its vocabulary head is new and random (e.g. {new[0]}); give a "
            "network with a masked-LM head such as bert-base-uncased, or leave lora_rank out"
        )
    names = linear_maps(denoiser)
    if targets != "auto":
        wanted = [target.strip() for target in targets.split(",")]
        found = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
        names = [n for n in found if any(n == target or n.endswith(f".{target}") for target in wanted)]
        lacking = [t for t in wanted if not any(n == t or n.endswith(f".{t}") for n in names)]
        if lacking:
            known = ", ".join(sorted({n.rpartition(".")[2] for n in found}))
            raise UserError(f"lora_targets={targets}: no linear map named {shown(lacking[0])}; there are {known}")
    if not names:
        raise UserError(f"lora_targets=auto: no linear maps found in {type(network).__name__}; name them")
    inject(network, {"r": rank, "lora_alpha": ALPHA * rank, "target_modules": names})


def linear_maps(denoiser: NetworkDenoiser) -> list[str]:
    """Return the full names of the linear maps in the network's layers, without embeddings and head."""
    inside = {id(m) for layer in denoiser.layers for m in layer.modules()}
    return [n for n, m in denoiser.network.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]


def inject(network: PreTrainedModel, settings: dict) -> None:
    """Freeze a network and add adapters with the settings of a `peft.LoraConfig`.

    Raises:
        UserError: if peft is not installed, or refuses the settings.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    network.requires_grad_(False)
    try:
        inject_adapter_in_model(LoraConfig(**settings), network, adapter_name=ADAPTER)
    except (ValueError, TypeError) as error:
        raise UserError(f"LoRA adapters do not fit {type(network).__name__}: {first_line(error)}") from error
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def require_peft() -> None:
    """Require the package peft.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UserError(f"LoRA adapters need the package peft ({error}); {INSTALL}") from error


def default_settings() -> dict:
    """Return the settings of a `peft.LoraConfig` by default, by name.

    Raises:
        UserError: if peft is not installed.
    """
    require_peft()
    from peft import LoraConfig

    return LoraConfig().to_dict()


def has_lora(network: nn.Module) -> bool:
    """Return whether a network has adapters."""
    return ADAPTER in getattr(network, "peft_config", {})


def adapter_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the adapters' weights by the names in a peft folder."""
    return {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": parameter.detach()
        for name, parameter in network.named_parameters()
        if ".lora_" in name
    }


def base_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the frozen weights by the names that they have without adapters."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict().items()
        if ".lora_" not in name
    }


def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network without adapters that computes the same: W + (alpha / r) B A."""
    from peft.tuners.lora import LoraLayer

    weights = base_weights(network)
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer):
            weights[f"{name}.weight"] = module.base_layer.weight.detach() + module.get_delta_weight(ADAPTER).detach()
    return weights


def trained_share(module: nn.Module) -> str:
    """Return a note of how many parameters are trained, "" if all are."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if trained == sum(p.numel() for p in module.parameters()):
        return ""
    return f", of which {trained:,} are trained"
