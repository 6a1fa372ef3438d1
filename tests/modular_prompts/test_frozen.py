"""frozen.py: the read-out follows from the network; what cannot carry prompts is refused in one line."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertForMaskedLM, BertModel

from data.wordpiece import train_wordpiece
from models.bert import BertDenoiser
from models.lora import inject, linear_maps
from modular_prompts.frozen import open_frozen, open_prompts, require_layers
from modular_prompts.options import PoolShape
from modular_prompts.pool import PromptPool
from modular_prompts.readouts import Cosine, Verbaliser
from modular_prompts.saved import SavedPrompts, network_digest, save_prompts
from modular_prompts.spans import Spans
from modular_prompts.tasks import Card
from tests.modular_prompts.toy_tasks import make_network
from utils.errors import UserError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


class Machine:
    precision, threads, device = "fp32", 1, "cpu"


@pytest.fixture
def network(tmp_path: Path, tokenizer) -> Path:  # noqa: ANN001
    return make_network(tmp_path / "my network", tokenizer)


def test_the_read_out_is_the_verbaliser_or_without_a_trained_head_the_cosine(
    network: Path, tmp_path, tokenizer
) -> None:  # noqa: ANN001
    reader = open_frozen(str(network), "auto", 0, 3, Machine)
    assert type(reader) is Verbaliser and reader.max_length == 128 and len(reader.placeholders) == 3
    encoder = tmp_path / "encoder"
    BertModel(reader.denoiser.network.config).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    first, second = (open_frozen(str(encoder), "auto", 60, 3, Machine) for _ in range(2))
    assert type(first) is Cosine and first.max_length == 60
    assert network_digest(first.denoiser, tokenizer) == network_digest(
        second.denoiser, tokenizer
    )  # though their heads are random
    with pytest.raises(UserError, match="the masked-LM head of .* is new and random .*use readout=cosine"):
        open_frozen(str(encoder), "verbaliser", 0, 3, Machine)


def test_networks_that_cannot_carry_prompts_are_refused(network: Path) -> None:
    config = AlbertConfig(vocab_size=50, embedding_size=16, intermediate_size=32, **SIZES)
    with pytest.raises(
        UserError, match=r"the network mine \(AlbertForMaskedLM\) has no known list of layers, or repeats one"
    ):
        require_layers(BertDenoiser(AlbertForMaskedLM(config)), "mine")
    reader = open_frozen(str(network), "auto", 0, 3, Machine)
    with pytest.raises(UserError, match="the network mine has a time input"):
        require_layers(BertDenoiser(reader.denoiser.network, "layerwise", 8), "mine")
    with pytest.raises(UserError, match="is no checkpoint of main.py; give one that was trained on pairs"):
        open_frozen(str(network), "window", 0, 3, Machine)
    with pytest.raises(UserError, match="max_length=1000 must be at most 512, the network's positions"):
        open_frozen(str(network), "auto", 1000, 3, Machine)


def saved(network: Path, folder: Path, readout: str = "verbaliser", head=None, tasks: tuple[str, ...] = ()) -> Path:  # noqa: ANN001
    """Save prompts for a network; return their folder."""
    reader = open_frozen(str(network), readout, 40, 3, Machine)
    pool = PromptPool(PoolShape(2, 3, 32, 2))
    routers, cards = {task: torch.zeros(1, 2) for task in tasks}, dict.fromkeys(tasks, Card("", "multiple-choice", ()))
    prompts = SavedPrompts(pool, routers, readout, [7, 8, 9], 40, cards, head=head)
    save_prompts(folder, prompts, reader.denoiser, reader.tokenizer, str(network))
    return folder


def test_prompts_open_with_their_read_out_placeholders_and_length(network: Path, tmp_path: Path) -> None:
    reader, prompts = open_prompts(str(saved(network, tmp_path / "p")), str(network), Machine)
    assert type(reader) is Verbaliser and reader.placeholders == [7, 8, 9] and reader.max_length == 40
    assert prompts.pool.shape.num_modules == 2
    head = torch.randn(2, 32)
    reader, _ = open_prompts(str(saved(network, tmp_path / "s", "spans", head)), str(network), Machine)
    assert type(reader) is Spans and torch.equal(reader.head.weight, head)
    assert isinstance(reader.head.weight, nn.Parameter) and not reader.head.weight.requires_grad


def test_prompts_without_their_network_or_head_are_refused(network: Path, tmp_path: Path, tokenizer) -> None:  # noqa: ANN001
    folder = saved(network, tmp_path / "p")
    with pytest.raises(UserError, match=r"prompts .*: .*my network.*; --model_name_or_path names the network"):
        open_prompts(str(folder), "", Machine)  # only the last part of its path is saved
    other = make_network(tmp_path / "other", tokenizer, seed=1)
    with pytest.raises(UserError, match="they belong to the network my network .*this one has other weights"):
        open_prompts(str(folder), str(other), Machine)
    with pytest.raises(UserError, match="the tensors of prompts.safetensors are not those"):
        open_prompts(str(saved(network, tmp_path / "s", "spans")), str(network), Machine)
    (folder / "prompts.json").write_text('{"format": 1, "shape": 3}')
    with pytest.raises(UserError, match=r"prompts .*: damaged"):
        open_prompts(str(folder), str(network), Machine)


def test_the_digest_covers_weights_adapters_configuration_and_tokenizer(network: Path, tokenizer) -> None:  # noqa: ANN001
    """Each of them changes scores."""
    denoiser = open_frozen(str(network), "auto", 0, 3, Machine).denoiser
    digests = [network_digest(denoiser, tokenizer), network_digest(denoiser, train_wordpiece(["a b c"], 100))]
    denoiser.network.config.num_attention_heads = 4
    digests.append(network_digest(denoiser, tokenizer))
    denoiser.network.config.num_attention_heads = 2
    inject(denoiser.network, {"r": 1, "lora_alpha": 2, "target_modules": linear_maps(denoiser)})
    digests.append(network_digest(denoiser, tokenizer))
    with torch.no_grad():
        next(p for name, p in denoiser.named_parameters() if "lora_B" in name)[0, 0] += 1
    digests.append(network_digest(denoiser, tokenizer))
    assert len(set(digests)) == len(digests)


def test_causal_and_continuous_checkpoints_are_refused(tmp_path: Path, tokenizer) -> None:  # noqa: ANN001
    class Causal:
        causal, process_name, pairs = True, "ar", None
        denoiser = tokenizer = None

    (tmp_path / "process.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modular_prompts.frozen.load_checkpoint", lambda *_, **__: Causal)
        with pytest.raises(UserError, match="has process=ar; give one of a masked process"):
            open_frozen(str(tmp_path), "auto", 0, 3, Machine)
