"""row_formats.py: every token is in one row, the scored tokens are those of the format, and bounds hold."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

import compute_elbo
import main
import predict
from checkpoint.folder import load_checkpoint
from data.batch import Batch
from data.corpus import training_source
from data.options import ROW_FORMATS, DataArgs, TextFormat
from data.row_formats import load_texts, read_rows, rows_of_texts
from data.tokenized_text import Text, TokenizedText, tokenize
from data.tokenizers import encode, load_tokenizer
from diffusion.masked.process import MaskedProcess
from diffusion.masked.warm_start import masked_lm_loss
from diffusion.options import BoundArgs
from tests.conftest import SENTENCES, TINY, TableDenoiser, all_sentences, call
from tests.toy_family import mdlm, patterns
from tests.toy_process import MASK
from utils.errors import UserError

WIDTH = 12


def rows_of(protocol: str, file: Path, tokenizer: PreTrainedTokenizerBase, **options: object) -> Text:
    form = TextFormat(protocol, **options)
    return read_rows(training_source(str(file)), form, tokenizer, WIDTH, str(file.parent / "cache"))


def batch_of(rows: Text, tokenizer: PreTrainedTokenizerBase) -> Batch:
    return rows.batch(np.arange(len(rows)), tokenizer)


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_unpadded_rows_are_the_texts_themselves(corpus: Path, tokenizer) -> None:
    rows = rows_of("unpadded", corpus, tokenizer)
    assert type(rows) is TokenizedText and len(rows) == len(SENTENCES)


def test_padded_rows_are_noised_everywhere_and_scored_up_to_their_sep(corpus: Path, tokenizer) -> None:
    batch = batch_of(rows_of("padded", corpus, tokenizer), tokenizer)
    assert batch.input_ids.shape == (len(SENTENCES), WIDTH)
    assert batch.attention_mask.all() and batch.noised.all()
    assert torch.equal(batch.target_mask, batch.input_ids != tokenizer.pad_token_id)
    sep = batch.input_ids == tokenizer.sep_token_id
    assert (sep.sum(1) == 1).all() and (batch.input_ids[:, 0] == tokenizer.cls_token_id).all()


def test_blocks_hold_every_token_once_in_order_and_a_sep_after_each_text(corpus: Path, tokenizer) -> None:
    batch = batch_of(rows_of("wrapped", corpus, tokenizer), tokenizer)
    texts = [[*ids, tokenizer.sep_token_id] for ids in encode(tokenizer, SENTENCES)["input_ids"]]
    stream = [token for text in texts for token in text]
    inside = batch.input_ids[:, 1:-1].flatten().tolist()
    assert inside == stream[: len(inside)] and len(stream) - len(inside) < WIDTH - 2
    assert (batch.input_ids[:, 0] == tokenizer.cls_token_id).all()
    assert (batch.input_ids[:, -1] == tokenizer.sep_token_id).all()
    assert batch.target_mask.all() and batch.attention_mask.all()


def test_running_text_joins_the_lines_with_spaces(tmp_path: Path) -> None:
    characters, lines = load_tokenizer("text8"), ["the cat sat on the mat", "a dog", "my bird sees the old red ball"]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    batch = batch_of(rows_of("running", tmp_path / "lines.txt", characters), characters)
    text = characters.decode(batch.input_ids[:, 1:-1].flatten())
    whole = " " + " ".join(lines)
    assert text == whole[: len(text)] and len(whole) - len(text) < WIDTH - 2
    assert batch.target_mask[:, 1:-1].all() and not batch.target_mask[:, [0, -1]].any()


def test_the_ids_of_text8_are_those_of_mdlm() -> None:
    tokenizer = load_tokenizer("text8")
    assert encode(tokenizer, ["az ", "A[MASK]"])["input_ids"] == [[8, 33, 34], [8, 7, 20, 8, 26, 18, 7]]
    assert (tokenizer.mask_token_id, len(tokenizer)) == (4, 35)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("protocol", ["padded", "wrapped", "running"])
@pytest.mark.parametrize("number", [40, 43])
def test_token_counts_are_those_of_the_scored_tokens(
    protocol: str, number: int, causal: bool, tmp_path: Path, tokenizer
) -> None:
    """Texts of ten tokens in blocks of ten: 40 texts with their [SEP]s fill 44 blocks; 43 texts leave a remainder."""
    file = tmp_path / "ten.txt"
    ten = next(s for s, ids in zip(SENTENCES, encode(tokenizer, SENTENCES)["input_ids"], strict=True) if len(ids) == 10)
    file.write_text((ten + "\n") * number)
    form, arguments = TextFormat(protocol), (tokenizer, WIDTH, str(tmp_path / "cache"))
    rows = read_rows(training_source(str(file)), form, *arguments, causal=causal)
    batch = batch_of(rows, tokenizer)
    scored = torch.bincount(batch.input_ids[batch.target_mask], minlength=len(tokenizer))
    assert torch.equal(rows.counts(len(tokenizer)), scored) and scored.sum() == rows.target_lengths.sum()
    assert len(rows) == len(rows.num_words) == ({40: 44, 43: 47}[number] if protocol == "wrapped" else number)
    assert number < 43 or protocol != "wrapped" or rows.num_words.sum() < number * len(ten.split())
    if number == 40:
        assert rows.num_words.sum() == pytest.approx(40 * len(ten.split()))
    if form.whole_rows:  # counts of another text, twice as long, without special tokens
        plain = tokenize(training_source(str(file)), tokenizer, 99, arguments[2]).counts(len(tokenizer))
        ends = [tokenizer.cls_token_id, tokenizer.sep_token_id]
        assert (rows.with_special_counts(2 * plain)[ends] - 2 * scored[ends]).abs().max() <= 4


def test_a_block_reports_the_line_where_it_begins(corpus: Path, tokenizer) -> None:
    rows = rows_of("wrapped", corpus, tokenizer)
    lengths = [len(ids) + 1 for ids in encode(tokenizer, SENTENCES)["input_ids"]]
    line = int(np.searchsorted(np.cumsum(lengths), 5 * (WIDTH - 2), side="right")) + 1
    assert rows.location(5) == f"{corpus}:{line}"


def test_a_detokenizer_is_applied_before_the_text_is_cut(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "a.txt").write_text("the cat , a dog ?\n")
    (tmp_path / "b.txt").write_text("the cat, a dog?\n")
    rows = rows_of("unpadded", tmp_path / "a.txt", tokenizer, detokenizer="lm1b")
    assert rows.sentence(0).tolist() == rows_of("unpadded", tmp_path / "b.txt", tokenizer).sentence(0).tolist()
    assert rows.num_words.tolist() == [4]


def test_the_first_token_is_given_to_a_causal_network(corpus: Path, tokenizer) -> None:
    args = DataArgs(str(corpus), max_length=WIDTH, batch_size=4, cache_dir=str(corpus.parent / "cache"))
    for protocol in ROW_FORMATS:
        plain, causal = (load_texts(args, tokenizer, TextFormat(protocol), causal=c)[0] for c in (False, True))
        a, b = (rows.batch(np.arange(3), tokenizer) for rows in (plain, causal))
        assert not b.target_mask[:, 0].any() and torch.equal(a.target_mask[:, 1:], b.target_mask[:, 1:])
        assert len(plain) == len(causal) and plain.size == causal.size


def test_training_accepts_text_without_spaces(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "dna.txt").write_text("".join("acgt" * i + "\n" for i in range(30, 90)))
    flags = [*FLAGS[2:], "--tokenizer", "text8", "--protocol", "running", "--train_data", tmp_path / "dna.txt"]
    flags = [flag for flag in flags if flag not in ("--vocab_size", "300")]
    run_flags = ["--cache_dir", tmp_path / "cache", "--valid_fraction", 0.3, "--eval_sequences", 4, "--max_steps", 2]
    assert call(main.main, monkeypatch, *flags, *run_flags, "--output_dir", tmp_path / "run") == 0, (
        capsys.readouterr().err
    )


def test_a_file_named_text8_does_not_hide_the_tokenizer(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "text8").write_text(" anarchism originated")
    monkeypatch.chdir(tmp_path)
    assert len(load_tokenizer("text8")) == 35


def test_a_text_that_fills_no_block_is_refused(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "short.txt").write_text("a dog\n")
    with pytest.raises(UserError, match=r"short.txt: 3 tokens do not fill one block of 10"):
        rows_of("wrapped", tmp_path / "short.txt", tokenizer)


# ---- the bound with noised tokens that are not scored ----------------------------------------------------------------

PAD = 4


def padded(text: torch.Tensor) -> Batch:
    """Two tokens of text and two [PAD]s."""
    row = torch.cat([text, torch.full((2,), PAD)])[None]
    everything = torch.ones_like(row, dtype=torch.bool)
    return Batch(row, everything, row != PAD, everything)


def enumerated_bound(process: MaskedProcess, denoiser: TableDenoiser, batch: Batch) -> float:
    """Continuous-time bound over all sets of masked positions; k of them weigh the integral of r^(k-1) (1-r)^(L-k)."""
    total, length, at = 0.0, batch.input_ids.shape[1], torch.ones(1, dtype=torch.float64)
    for masked in patterns(length):
        if k := int(masked.sum()):
            xt = batch.input_ids.masked_fill(masked, MASK)
            nats = process.token_terms(denoiser, batch, xt, at, at, with_kl=False)[1].sum().item()
            total += nats * math.gamma(k) * math.gamma(length - k + 1) / math.gamma(length + 1)
    return total


def test_padded_texts_of_one_length_have_total_probability_below_one() -> None:
    """exp(-bound) sums to less than one over all texts of two tokens: [PAD]s reveal the length alone."""
    process, denoiser = mdlm(), TableDenoiser(5)
    texts = all_sentences([0, 1, 2], 2)
    bounds = [enumerated_bound(process, denoiser, padded(text)) for text in texts]
    assert 0.01 < sum(math.exp(-b) for b in bounds) < 1


@pytest.mark.parametrize(
    ("num_steps", "args"),
    [
        (math.inf, BoundArgs("masked-count", 3)),
        (math.inf, BoundArgs("trajectory", 2)),
        (400, BoundArgs("masked-count", 3)),
        (400, BoundArgs("trajectory", 2)),
        (400, BoundArgs("stratified", 40)),
    ],
)
def test_estimators_agree_where_pads_are_noised_but_not_scored(num_steps: float, args: BoundArgs) -> None:
    process, denoiser, batch = mdlm(), TableDenoiser(5), padded(torch.tensor([2, 0]))
    draws = process.bound(denoiser, batch.rows(torch.zeros(4000, dtype=torch.long)), num_steps, args).total
    slack = 0.02 if math.isfinite(num_steps) else 0  # error of 400 windows
    assert abs(draws.mean() - enumerated_bound(process, denoiser, batch)) < 4 * draws.std() / 4000**0.5 + slack


def test_the_mean_of_the_loss_is_the_padded_bound() -> None:
    process, denoiser, batch = mdlm(importance_sampling=True), TableDenoiser(5), padded(torch.tensor([2, 0]))
    losses = [process.loss(denoiser, batch.rows(torch.zeros(1000, dtype=torch.long))) for _ in range(40)]
    means = torch.tensor([loss.total / 1000 for loss in losses])
    assert all(loss.num_tokens == 2000 for loss in losses)
    assert abs(means.mean() - enumerated_bound(process, denoiser, batch)) < 4 * means.std() / 40**0.5


def test_the_warm_start_noises_the_pads_but_counts_the_text_alone() -> None:
    seen = []

    class Watching(TableDenoiser):
        def encode(self, xt, t, attention_mask):
            seen.append(xt)
            return super().encode(xt, t, attention_mask)

    batch = padded(torch.tensor([2, 0])).rows(torch.zeros(200, dtype=torch.long))
    loss = masked_lm_loss(mdlm(), Watching(5), batch, rates=(0.5, 0.5))
    assert (seen[0] == MASK).float().mean(0).min() > 0.3 and loss.num_tokens == 400


# ---- through the scripts ---------------------------------------------------------------------------------------------

T = TINY.index("--num_steps")
FLAGS = [*TINY[:T], *TINY[T + 2 :], "--process", "mdlm", "--max_steps", 10, "--eval_steps", 10, "--max_length", 16]


def train(monkeypatch, corpus: Path, *flags: object) -> int:
    base = [*FLAGS, "--train_data", corpus, "--cache_dir", corpus.parent / "cache", "--valid_fraction", 0.2]
    return call(main.main, monkeypatch, *base, "--output_dir", corpus.parent / "run", *flags)


@pytest.mark.parametrize("process", ["mdlm", "ar"])
@pytest.mark.parametrize("protocol", ["padded", "wrapped", "running"])
@pytest.mark.slow
def test_a_checkpoint_is_scored_and_sampled_in_its_row_format(process, protocol, corpus, monkeypatch, capsys) -> None:
    assert train(monkeypatch, corpus, "--protocol", protocol, "--process", process, "--detokenizer", "lm1b") == 0
    folder = corpus.parent / "run"
    run = load_checkpoint(str(folder), torch.device("cpu"))
    assert run.text_format == TextFormat(protocol, "lm1b")
    flags = ["--checkpoint", folder, "--threads", 1]
    capsys.readouterr()
    data_flags = ["--data", corpus, "--cache_dir", corpus.parent / "cache", "--json", "true"]
    assert call(compute_elbo.main, monkeypatch, *flags, *data_flags) == 0
    own = json.loads(capsys.readouterr().out)
    assert (
        call(compute_elbo.main, monkeypatch, *flags, *data_flags, "--protocol", "unpadded", "--detokenizer", "none")
        == 0
    )
    other = json.loads(capsys.readouterr().out)
    assert (own["protocol"], other["protocol"]) == (protocol, "unpadded")
    assert own["num_tokens"] != other["num_tokens"] and math.isfinite(own["nats_per_sequence"])
    assert call(predict.main, monkeypatch, *flags, "--num_samples", 3, "--infill", "the [MASK] sees a dog") == 0
    assert call(predict.main, monkeypatch, *flags, "--num_samples", 3) == 0
    assert not any(name in capsys.readouterr().out for name in ("[MASK]", "[CLS]", "[PAD]"))
    assert call(predict.main, monkeypatch, *flags, "--length", 3) == 2
    assert f"a row of row_format={protocol} has 16 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "padded", "--process", "word_freq"], "choose another row format"),
        (["--protocol", "wrapped", "--packing", "true"], "packing=true needs row_format=unpadded"),
        (["--protocol", "wrapped", "--streaming", "true"], "streaming=true needs row_format=unpadded"),
        (["--detokenizer", "ptb", "--streaming", "true"], "without a detokenizer"),
        (["--protocol", "wrap"], "wrap"),
    ],
)
def test_settings_that_exclude_a_row_format_are_refused(flags, message, corpus, monkeypatch, capsys) -> None:
    assert train(monkeypatch, corpus, *flags) == 2
    assert message in capsys.readouterr().err


def test_row_formats_are_refused_for_pairs(pairs_folder, monkeypatch, capsys) -> None:
    assert train(monkeypatch, pairs_folder / "train.jsonl", "--protocol", "wrapped") == 2
    assert "holds pairs; row_format and detokenizer are for text" in capsys.readouterr().err


@pytest.mark.parametrize("form", [TextFormat(), TextFormat("padded"), TextFormat(detokenizer="ptb")])
def test_texts_in_memory_are_arranged_like_those_of_a_file(tokenizer, tmp_path: Path, form: TextFormat) -> None:
    texts = [" the cat 's house ", "the dog", "the cat sees the dog near the house"]
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n")
    of_file = read_rows(training_source(str(tmp_path / "t.txt")), form, tokenizer, 8, str(tmp_path / "cache"))
    in_memory = rows_of_texts(texts, form, tokenizer, 8)
    assert in_memory.num_words.tolist() == of_file.num_words.tolist() and in_memory.cuts == of_file.cuts != ""
    one, other = batch_of(in_memory, tokenizer), batch_of(of_file, tokenizer)
    assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.target_mask, other.target_mask)


def test_texts_in_memory_need_tokens_and_a_row_each(tokenizer) -> None:
    for form, texts, message in (
        (TextFormat("wrapped"), ["the cat"], "hold several texts"),
        (TextFormat(detokenizer="lambada"), ["the cat", " "], "text 1 is ' ', without a token"),
    ):
        with pytest.raises(UserError, match=message):
            rows_of_texts(texts, form, tokenizer, 8)
