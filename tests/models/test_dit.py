"""dit.py: parameter names and numbers of the released network; the cache of the causal variant is exact."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import main
from checkpoint.folder import load_checkpoint
from models.dit import Dit, DitConfig, DitDenoiser, DitNetwork
from models.factory import make_denoiser
from models.networks import PRESETS, load_network
from tests.conftest import TINY, call
from tests.test_main import records
from training.arguments import OptimArgs
from training.optim import make_optimizers
from utils.errors import UserError

SMALL = {
    "vocab_size": 30,
    "hidden_dim": 16,
    "cond_dim": 8,
    "n_blocks": 2,
    "n_heads": 2,
    "model_length": 32,
    "dropout": 0.0,
}
SPECIAL = {"vocab_embed.embedding", "output_layer.norm_final.weight", "output_layer.linear.weight"} | {
    "output_layer.linear.bias", "output_layer.adaLN_modulation.weight", "output_layer.adaLN_modulation.bias",
    "sigma_map.mlp.0.weight", "sigma_map.mlp.0.bias", "sigma_map.mlp.2.weight", "sigma_map.mlp.2.bias",
    "rotary_emb.inv_freq",
}  # fmt: skip
OF_A_BLOCK = {
    "norm1.weight", "norm2.weight", "attn_qkv.weight", "attn_out.weight", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight",
    "mlp.2.bias", "adaLN_modulation.weight", "adaLN_modulation.bias",
}  # fmt: skip
"""Parameter names of the released network."""


def network(causal: bool = False, seed: int = 0, **changes: object) -> DitNetwork:
    """Create a network without zero weights."""
    model = DitNetwork(DitConfig(**{**SMALL, "causal": causal, **changes})).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize(("vocab_size", "number"), [(50_258, 169_627_218), (30_522, 139_292_986)])
def test_the_small_network_has_as_many_parameters_as_the_released_one(vocab_size: int, number: int) -> None:
    with torch.device("meta"):
        model = Dit(DitConfig(vocab_size=vocab_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == number


def test_parameter_names_are_the_released_ones() -> None:
    names = set(network().backbone.state_dict())
    assert names == SPECIAL | {f"blocks.{i}.{name}" for i in (0, 1) for name in OF_A_BLOCK}
    causal = set(network(causal=True).backbone.state_dict())
    assert causal == {name for name in names if "adaLN" not in name and "sigma_map" not in name}


def test_logits_are_the_recorded_ones() -> None:
    """Hidden 16, 2 heads, 2 blocks, cond 8; 0.1 randn in the order of sorted names after seed 1; sigma 0.7.

    The record states a sigma of 0, but only 0.7 gives its digits, here to the last one.
    """
    model = DitNetwork(DitConfig(**{**SMALL, "vocab_size": 6})).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.backbone.named_parameters()):
            parameter.copy_(0.1 * torch.randn(parameter.shape))
        found = model(torch.tensor([[5, 0, 5, 4]]), torch.tensor([0.7]))[0, 0]
    expected = torch.tensor([-0.004036, 0.178114, 0.076578, -0.029068, -0.013305, -0.093041])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_the_initial_weights_follow_the_release() -> None:
    """With modulation and head at zero, every layer is the identity and all tokens have equal logits."""
    model = DitNetwork(DitConfig(**SMALL)).eval()
    ids = torch.arange(6)[None]
    assert (model(ids) == 0).all()
    hidden = model.backbone(ids, torch.zeros(1), None)[0]
    assert model.backbone.vocab_embed.embedding.abs().max() <= (3 / 16) ** 0.5
    torch.testing.assert_close(hidden[0], torch.nn.functional.layer_norm(model.backbone.vocab_embed(ids)[0], (16,)))


def test_padding_does_not_change_the_output_and_time_only_if_conditioned() -> None:
    timed, untimed = DitDenoiser(network(), "layerwise"), DitDenoiser(network())
    ids, on = torch.randint(0, 30, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    wide = torch.cat([ids, torch.full((2, 3), 9)], 1)
    padded = torch.cat([on, torch.zeros(2, 3, dtype=torch.bool)], 1)
    sigma = torch.tensor([0.1, 3.0])
    torch.testing.assert_close(timed.encode(wide, sigma, padded)[:, :7], timed.encode(ids, sigma, on))
    assert not torch.allclose(timed.encode(ids, sigma, on), timed.encode(ids, 2 * sigma, on))
    torch.testing.assert_close(untimed.encode(ids, sigma, on), untimed.encode(ids, 2 * sigma, on))
    torch.testing.assert_close(untimed.encode(ids, sigma, on), timed.encode(ids, 0 * sigma, on))
    logits = untimed.decode(untimed.encode(ids, sigma, on))
    torch.testing.assert_close(logits, untimed.network(ids))


def test_the_output_depends_on_relative_positions() -> None:
    model = network().backbone
    ids, sigma = torch.tensor([[3, 3, 5, 3, 3, 3]]), torch.zeros(1)
    forward, backward = model(ids, sigma, None)[0], model(ids.flip(1), sigma, None)[0]
    assert not torch.allclose(forward, backward.flip(1))
    with_offset = model.rotary_emb(4, 6, ids.device)
    without_offset = model.rotary_emb(0, 6, ids.device)
    torch.testing.assert_close(with_offset[0], without_offset[0][4:])


def test_a_causal_network_attends_to_the_left_and_its_cache_is_exact() -> None:
    denoiser = DitDenoiser(network(causal=True))
    ids = torch.randint(0, 30, (3, 9))
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    whole = denoiser.encode(ids, torch.zeros(3), everywhere)
    changed = denoiser.encode(torch.cat([ids[:, :5], ids[:, 5:].flip(1)], 1), torch.zeros(3), everywhere)
    torch.testing.assert_close(changed[:, :5], whole[:, :5])
    assert not torch.allclose(changed[:, 5:], whole[:, 5:])
    seen, cache = [], None
    for a, b in ((0, 4), (4, 5), (5, 6), (6, 9)):
        hidden, cache = denoiser.extend(ids[:, a:b], cache)
        seen.append(hidden)
    torch.testing.assert_close(torch.cat(seen, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("causal", "kind"), [(False, AutoModelForMaskedLM), (True, AutoModelForCausalLM)])
def test_weights_are_saved_and_loaded_by_name(tmp_path: Path, causal: bool, kind: type) -> None:
    model = network(causal)
    model.save_pretrained(tmp_path / "a")
    saved = load_file(tmp_path / "a" / "model.safetensors")
    assert {name.removeprefix("backbone.") for name in saved} == set(model.backbone.state_dict())
    loaded = kind.from_pretrained(tmp_path / "a").eval()
    ids = torch.randint(0, 30, (2, 5))
    torch.testing.assert_close(loaded(ids), model(ids))
    torch.testing.assert_close(loaded.backbone.rotary_emb.inv_freq, model.backbone.rotary_emb.inv_freq)
    lacking = {name: tensor for name, tensor in saved.items() if "norm_final" not in name}
    save_file(lacking, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack backbone.output_layer.norm_final.weight"):
        load_network(str(tmp_path / "a"), whole=True, causal=causal)


def test_embedding_tables_are_not_optimised_by_muon() -> None:
    model = network()
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    muon, _ = make_optimizers(OptimArgs(optimizer="muon"), model, tables)
    held = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    assert id(model.backbone.vocab_embed.embedding) not in held and id(model.backbone.blocks[0].attn_qkv.weight) in held


@pytest.mark.parametrize(
    "flags", [["--process", "mdlm", "--time_conditioning", "layerwise"], ["--process", "mdlm"], ["--process", "ar"]]
)
@pytest.mark.slow
def test_the_network_trains_and_its_checkpoint_loads(monkeypatch, corpus: Path, tmp_path: Path, flags: list) -> None:
    preset = TINY.index("--num_steps")
    base = [*TINY[:preset], *TINY[preset + 2 :], *flags, "--optimizer", "muon", "--valid_fraction", 0.1]
    sizes = "hidden_dim=64,cond_dim=16,n_blocks=2,n_heads=2,model_length=64"
    base += ["--model_name_or_path", "ddit-tiny", "--config_overrides", sizes, "--max_length", 32, "--max_steps", 150]
    base += ["--train_data", corpus, "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "run"]
    assert call(main.main, monkeypatch, *base) == 0
    valid = records(tmp_path / "run", "valid")[-1]
    assert valid["bits_per_token"] < 0.9 * valid["unigram_bits_per_token"]
    run = load_checkpoint(str(tmp_path / "run"), torch.device("cpu"))
    assert isinstance(run.denoiser, DitDenoiser) and run.denoiser.time_conditioned == ("layerwise" in flags)
    assert isinstance(load_network(str(tmp_path / "run" / "checkpoint"), causal="ar" in flags), DitNetwork)


def test_unsupported_options_are_refused() -> None:
    assert {"ddit-tiny", "ddit-small", "ddit-medium"} <= set(PRESETS)
    with pytest.raises(UserError, match="network supports none, and layerwise if it is not causal"):
        make_denoiser(network(), "token", 10)
    with pytest.raises(UserError, match="network supports none, and layerwise if it is not causal"):
        make_denoiser(network(causal=True), "layerwise", 10)
    with pytest.raises(UserError, match="does not separate the sentences of a row"):
        make_denoiser(network(), "none", 10).pack_rows(32)
    with pytest.raises(ValueError, match="hidden_dim=30 must be a multiple"):
        DitConfig(hidden_dim=30, n_heads=2)


def test_the_hidden_size_has_the_name_of_other_networks() -> None:
    assert DitConfig(hidden_dim=64, n_heads=4).hidden_size == 64
