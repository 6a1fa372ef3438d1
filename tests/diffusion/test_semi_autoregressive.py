"""semi_autoregressive.py: drawn tokens stay, each window is conditioned on the last, and one stride is exact."""

import math
import re

import pytest
import torch
from torch import Tensor

import main
import predict
from data.batch import Batch
from diffusion.options import SampleArgs, SemiArArgs
from diffusion.semi_autoregressive import write
from tests.conftest import SENTENCES, TINY, TableDenoiser, all_sentences, call, text_batch
from tests.diffusion.masked.test_process import agrees
from tests.toy_family import V, law_of_steps, mdlm
from tests.toy_process import MASK, every
from utils.errors import UserError


def test_every_window_is_given_the_last_and_drawn_tokens_never_change() -> None:
    """Windows of 6 by strides of 2; drawn tokens are numbered, so that each can be traced."""
    seen: list[Batch] = []

    def draw(batch: Batch) -> Tensor:
        seen.append(batch)
        fresh = 100 * len(seen) + torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
        return torch.where(batch.target_mask, fresh, batch.input_ids)

    row = torch.tensor([[7, 0, 0, 0, 0, 0, 0, 8]])
    text = (row == 0).expand(3, -1)
    first = Batch(row.expand(3, -1), torch.ones(3, 8, dtype=torch.bool), text)
    long = write(first, draw, stride=2, num_strides=3)
    assert long[0].tolist() == [7, 101, 102, 103, 104, 105, 106, 205, 206, 305, 306, 405, 406, 8]
    assert torch.equal(long, long[:1].expand(3, -1)) and len(seen) == 4
    for i, window in enumerate(seen[1:], start=1):
        assert window.target_mask[0].nonzero()[:, 0].tolist() == [5, 6]
        assert torch.equal(window.input_ids[:, 1:5], long[:, 1 + 2 * i : 5 + 2 * i])  # a prefix as it was drawn
        assert window.input_ids[0, [0, 7]].tolist() == [7, 8]


def test_the_law_is_that_of_one_window_after_another() -> None:
    """Windows of two tokens by strides of one: p(a, b) p(c given b) of the sampler's own law, multiplied out."""
    denoiser, args, number = TableDenoiser(V), SampleArgs(num_steps=4), 20_000
    pair = law_of_steps(mdlm(), denoiser, 2, args)
    law = torch.zeros(V, V, V, dtype=torch.float64)
    for b in range(V):
        if b == MASK:
            continue
        xt = torch.tensor([[b, MASK]])
        logits = denoiser.encode(xt, torch.ones(1), every(xt))[0, 1].clone()
        logits[MASK] = -math.inf
        following = logits.softmax(-1).double()
        for a in range(V):
            law[a, b] = pair.get((a, b), 0.0) * following
    first = text_batch(torch.zeros(number, 2, dtype=torch.long))
    drawn = write(first, lambda batch: mdlm().sample(denoiser, batch, args), stride=1, num_strides=1)
    batch = text_batch(torch.zeros(number, 3, dtype=torch.long))
    order = torch.tensor([law[tuple(x)] for x in all_sentences(list(range(V)), 3).tolist()])
    assert agrees(drawn, batch, order)


def test_strides_outside_a_window_are_refused() -> None:
    assert SemiArArgs(semi_ar=True).stride(9) == 4
    with pytest.raises(UserError, match=r"stride_length=9 must lie in 1..8"):
        SemiArArgs(semi_ar=True, stride_length=9).stride(9)
    with pytest.raises(UserError, match="need --semi_ar true"):
        SemiArArgs(num_strides=3)


T = TINY.index("--num_steps")


@pytest.mark.parametrize(
    ("process", "protocol"),
    [(p, "wrapped") for p in ("mdlm", "ar", "sedd", "d3pm", "word_freq")] + [("mdlm", "running"), ("ar", "running")],
)
@pytest.mark.slow
def test_more_strides_extend_the_same_text(process: str, protocol: str, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES) + "\n")
    flags = [*TINY[:T], *TINY[T + 2 :], "--process", process, "--protocol", protocol, "--max_length", 16]
    flags += ["--time_conditioning", "layerwise"] if process == "sedd" else []
    flags += ["--train_data", tmp_path / "corpus.txt", "--cache_dir", tmp_path / "cache", "--max_steps", 5]
    flags += ["--eval_sequences", 2, *(["--num_steps", 64] if process == "word_freq" else [])]
    assert call(main.main, monkeypatch, *flags, "--output_dir", tmp_path / "run", "--valid_fraction", 0.2) == 0
    base = ["--checkpoint", tmp_path / "run", "--threads", 1, "--num_samples", 2, "--semi_ar", "true"]
    outputs: list[list[str]] = []
    for strides in (1, 3):
        capsys.readouterr()
        assert call(predict.main, monkeypatch, *base, "--stride_length", 5, "--num_strides", strides) == 0
        outputs.append(capsys.readouterr().out.splitlines())
    for short, long in zip(*outputs, strict=True):
        assert long.startswith(short[: len(short) // 2]) and len(long) > len(short)
    capsys.readouterr()
    one = ["--stride_length", 5, "--num_strides", 3, "--batch_size", 1]
    assert call(predict.main, monkeypatch, *base, *one) == 0
    assert capsys.readouterr().out.splitlines() == outputs[1]  # independent of the rest of the batch
    assert call(predict.main, monkeypatch, *base, "--infill", "the [MASK]") == 2
    assert "leave --infill, --show and --film out" in capsys.readouterr().err
    warned = ["--sampler", "ordered"] if process in ("mdlm", "d3pm", "sedd") else []  # has a note, which comes later
    assert call(predict.main, monkeypatch, *base, *warned, "--stride_length", 99) == 2
    assert re.match(r"script.py: error: stride_length=99 must lie in 1\.\.1\d, less", capsys.readouterr().err)


def test_checkpoints_of_single_texts_are_refused(trained, monkeypatch, capsys) -> None:
    assert call(predict.main, monkeypatch, "--checkpoint", trained, "--semi_ar", "true") == 2
    assert "this checkpoint's rows are unpadded, single texts that end" in capsys.readouterr().err
