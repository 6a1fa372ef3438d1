"""infilling.py: given words stay whole for every vocabulary and process; allowed pieces keep their proportions."""

import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel, WordPiece
from transformers import AddedToken, PreTrainedTokenizerFast

import predict
from checkpoint.model_parts import PROCESSES
from data.batch import Batch
from data.sentencepiece import load_sentencepiece, train_sentencepiece
from data.tokenizers import text8_tokenizer
from diffusion import infilling
from diffusion.infilling import Restriction
from diffusion.masked.word_freq_released import ReleasedWordFreqDiffusion
from diffusion.options import SampleArgs
from diffusion.process import Vocabulary
from tests.conftest import TableDenoiser, call
from utils.errors import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}


def fast_tokenizer(model: models.Model, pre_tokenizer, decoder, **options: object) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoder
    if isinstance(model, WordPiece):
        backend.normalizer = normalizers.BertNormalizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES, **{"mask_token": "[MASK]", **options})


def ids(*pieces: str) -> dict[str, int]:
    return {piece: i for i, piece in enumerate([*SPECIAL, *pieces])}


def wordpiece() -> PreTrainedTokenizerFast:
    pieces = ["a", "said", "war", "x", ",", "(", ")", "-", "##s", "##-", "##9", "un"]
    return fast_tokenizer(
        WordPiece(ids(*pieces), unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    )


def byte_level() -> PreTrainedTokenizerFast:
    pieces = ["a", "x", ",", "(", ")", "s", "9", "-", ".com", "Ã", "Ċ", "Ġ", "said", "un"]
    spaced = ["Ġ" + word for word in ("a", "x", "said", "war", ",", "(", ")")]
    model = BPE(ids(*pieces, *spaced), [], unk_token="[UNK]", ignore_merges=True)
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return fast_tokenizer(
        model, pre_tokenizer, decoders.ByteLevel(), mask_token=AddedToken("[MASK]", lstrip=True, special=True)
    )


def word_end() -> PreTrainedTokenizerFast:
    pieces = [*"asx,()un-", *(piece + "</w>" for piece in ("a", "s", "said", "war", ",", "(", ")", "-", "un"))]
    model = BPE(ids(*pieces), [], unk_token="[UNK]", end_of_word_suffix="</w>")
    return fast_tokenizer(model, pre_tokenizers.BertPreTokenizer(), decoders.BPEDecoder())


def sentencepiece(tmp_path: Path) -> PreTrainedTokenizerFast:
    text = ["said war, a (house) of the sea", "he said a war in an old house, un said"] * 30
    (tmp_path / "m.model").write_bytes(train_sentencepiece(text, 60))
    return load_sentencepiece(tmp_path / "m.model")


def words_only() -> PreTrainedTokenizerFast:
    model = WordLevel(ids("a", "said", "war", "s", ",", "(", ")", "un"), unk_token="[UNK]")
    return fast_tokenizer(model, pre_tokenizers.BertPreTokenizer(), None)


def forbidden_pieces(tokenizer: PreTrainedTokenizerFast, restriction: Restriction) -> set[str]:
    size = max(tokenizer.get_vocab().values()) + 1
    pieces = infilling.glued_pieces(tokenizer, size)
    forbidden = torch.stack([pieces[name] & getattr(restriction, name) for name in Restriction._fields]).any(0)
    return set(tokenizer.convert_ids_to_tokens(forbidden.nonzero()[:, 0].tolist())) - set(SPECIAL)


BEFORE, MARKED = Restriction(join_before=True, go_on=True), Restriction(go_on=True)


@pytest.mark.parametrize(
    ("make", "glued", "not_glued"),
    [
        (wordpiece, {"##s", "##9", "##-"}, {"said", "-", ",", "x"}),
        (byte_level, {"s", "9", ".com", "Ã", "said"}, {",", "-", "Ċ", "Ġ", "Ġwar", "Ġ,"}),
        (words_only, set(), {"s", "said", ","}),
    ],
)
def test_pieces_glued_to_the_word_before_are_found_by_decoding(make, glued, not_glued) -> None:
    tokenizer = make()
    forbidden = forbidden_pieces(tokenizer, BEFORE)
    assert glued <= forbidden and not forbidden & not_glued
    assert forbidden_pieces(tokenizer, MARKED) == ({"##s", "##9", "##-"} if make is wordpiece else set())
    assert (
        forbidden_pieces(tokenizer, Restriction(join_after=True)) == set() == forbidden_pieces(tokenizer, Restriction())
    )


def test_pieces_without_an_end_of_word_mark_are_glued_to_the_next_word() -> None:
    tokenizer = word_end()
    assert forbidden_pieces(tokenizer, BEFORE) == set()
    forbidden = forbidden_pieces(tokenizer, Restriction(join_after=True))
    assert {"s", "x", "u"} <= forbidden and not forbidden & {"s</w>", "said</w>", ",", "-"}


def test_sentencepieces_without_a_space_are_glued_to_the_word_before(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    forbidden, vocab = forbidden_pieces(tokenizer, BEFORE), set(tokenizer.get_vocab()) - set(SPECIAL)
    assert {"s", "a", "7"} <= forbidden and not [piece for piece in forbidden if piece.startswith("▁")]
    assert {p for p in vocab if p[:1].isalnum() and not p.startswith("<")} <= forbidden and "," not in forbidden


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # for each mask: may its piece be glued to the word before (with marked spaces); may it be a ## piece
        ("said [MASK] war", ["no no"]),
        ("said [MASK] [MASK] war", ["no no", "yes yes"]),
        ("said [MASK][MASK] war", ["no no", "yes yes"]),
        ("said [MASK] war [MASK] said", ["no no", "no no"]),
        ("said [MASK], [MASK]", ["no no", "no no"]),
        ("[MASK] war", ["yes no"]),
        (" [MASK] war", ["yes no"]),
        ("said ([MASK]) war", ["yes no"]),
        ("un[MASK] war", ["yes yes"]),
    ],
)
@pytest.mark.parametrize("make", [wordpiece, byte_level])
def test_the_restriction_depends_on_the_position_of_the_mask(make, text: str, expected: list[str]) -> None:
    tokenizer = make()
    gaps = infilling.parse_infill(tokenizer, text)
    restrictions = [restriction for token, restriction in zip(*gaps, strict=True) if token == tokenizer.mask_token_id]
    answers = [f"{'no' if p.join_before else 'yes'} {'no' if p.go_on else 'yes'}" for p in restrictions]
    assert answers == expected
    assert all(
        restriction == Restriction()
        for token, restriction in zip(*gaps, strict=True)
        if token != tokenizer.mask_token_id
    )


def test_no_piece_is_forbidden_where_spaces_are_tokens() -> None:
    tokenizer = text8_tokenizer()
    gaps = infilling.parse_infill(tokenizer, "the [MASK][MASK] house")
    assert not any(restriction.join_before for restriction in gaps.restrictions)
    assert forbidden_pieces(tokenizer, Restriction(join_after=True, go_on=True)) == set()


# ---- the law ---------------------------------------------------------------------------------------------------------

COUNTS = torch.tensor([0, 3, 0, 0, 0, 40, 7, 11, 5, 30, 15, 9])
TOKENIZER = fast_tokenizer(
    WordPiece(ids("a", "said", "war", "##s", "##t", "##a", "."), unk_token="[UNK]"),
    pre_tokenizers.BertPreTokenizer(),
    decoders.WordPiece(),
)
PIECES = torch.tensor([piece.startswith("##") for piece in TOKENIZER.convert_ids_to_tokens(range(12))])
GAPS = infilling.parse_infill(TOKENIZER, "said [MASK] [MASK] war")
ROW = torch.tensor([2, *GAPS.ids, 3])


def process_of(name: str):
    kind = PROCESSES[name]
    settings = {"num_steps": 16} if name in ("word_freq", "d3pm") else {}
    counts = (COUNTS,) if name == "word_freq" else ()
    vocabulary = Vocabulary(len(COUNTS), 4, excluded_ids=(0, 2, 3), unsampled_ids=(1,))
    return kind.process(kind.settings(**settings), *counts, vocabulary)


class PrefersPieces(TableDenoiser):
    """Denoiser that prefers ## pieces."""

    def encode(self, xt, t, attention_mask):
        """See Denoiser."""
        return super().encode(xt, t, attention_mask) + 3 * PIECES[: self.vocab_size]

    def extend(self, tokens, cache):
        """See CausalDenoiser."""
        seen = tokens if cache is None else torch.cat([cache, tokens], 1)
        return self.encode(seen, None, torch.ones_like(seen, dtype=torch.bool))[:, -tokens.shape[1] :], seen


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("word_freq", "row-clocks"),
        ("word_freq", "confidence"),
        ("released", "auto"),
        ("mdlm", "row-clocks"),
        ("mdlm", "ancestral"),
        ("mdlm", "cached"),
        ("mdlm", "remdm"),
        ("d3pm", "row-clocks"),
        ("sedd", "ancestral"),
        ("ar", "auto"),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 1000.0])
def test_no_sampler_glues_a_piece_to_a_given_word(name: str, sampler: str, temperature: float) -> None:
    if name == "released":
        args = PROCESSES["word_freq"].settings(num_steps=16, posterior="released")
        process = ReleasedWordFreqDiffusion(
            args, COUNTS, Vocabulary(len(COUNTS), 4, excluded_ids=(0, 2, 3), unsampled_ids=(1,))
        )
    else:
        process = process_of(name)
    denoiser = PrefersPieces(len(COUNTS), seed=1)
    rows = ROW.expand(60, -1).clone()
    batch = Batch(rows, torch.ones_like(rows, dtype=torch.bool), rows == 4)
    sampling = SampleArgs(num_steps=0 if name == "ar" else 8, sampler=sampler, temperature=temperature)
    restricted = infilling.restrict(denoiser, GAPS, TOKENIZER, process.support, rows.shape[1])
    drawn = process.sample(restricted, batch, sampling, rows_at_once=7)
    assert torch.equal(drawn[:, [0, 1, 4, 5]], rows[:, [0, 1, 4, 5]]) and not drawn.eq(4).any()
    assert not PIECES[drawn[:, 2]].any() and PIECES[drawn[:, 3]].any()  # the second piece may continue the first
    free = process.sample(denoiser, batch, sampling, rows_at_once=7)
    assert PIECES[free[:, 2]].any()


def test_allowed_pieces_keep_their_proportions_and_mask_its_probability() -> None:
    for name in ("mdlm", "d3pm", "sedd"):
        process, denoiser = process_of(name), PrefersPieces(len(COUNTS), seed=3)
        restricted = infilling.restrict(denoiser, GAPS, TOKENIZER, process.support, len(ROW))
        xt, everywhere = ROW[None], torch.ones(1, len(ROW), dtype=torch.bool)
        free = denoiser.decode(denoiser.encode(xt, torch.ones(1), everywhere))
        bound = restricted.decode(restricted.encode(xt, torch.ones(1), everywhere))
        others = [i for i in range(len(ROW)) if i != 2]
        assert torch.equal(free[0, others], bound[0, others])
        before, after = (process.within_support(logits[0, 2:3].clone()).exp() for logits in (free, bound))
        torch.testing.assert_close(after.sum(), before.sum())  # and with it SEDD's score and D3PM's p([MASK])
        torch.testing.assert_close(after[0, 4], before[0, 4])
        assert not after[0, PIECES].any()
        kept = ~PIECES & (process.support == 0) & (torch.arange(len(COUNTS)) != 4)
        ratio = (after / before)[0, kept]
        torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))


def test_an_empty_restriction_changes_nothing_and_a_total_one_is_refused() -> None:
    denoiser, support = TableDenoiser(len(COUNTS)), process_of("mdlm").support
    free = infilling.parse_infill(TOKENIZER, "said[MASK] war")
    assert infilling.restrict(denoiser, free, TOKENIZER, support, 5) is denoiser
    only = support.masked_fill(~PIECES, -torch.inf)
    with pytest.raises(UserError, match="no piece of this vocabulary may stand .* --infill_pieces true"):
        infilling.restrict(denoiser, GAPS, TOKENIZER, only, 6)


def test_given_words_stay_whole_at_a_high_temperature(monkeypatch, trained: Path, capsys) -> None:
    """At temperature 30, half of the freely drawn pieces are ## pieces."""
    base = ["--checkpoint", trained, "--threads", 1, "--num_steps", 8, "--num_samples", 60, "--temperature", 30]
    text = ["--infill", "the cat [MASK] the house [MASK] tree."]
    assert call(predict.main, monkeypatch, *base, *text) == 0
    kept = re.compile(r"the cat(?!\w).*(?<!\w)the house(?!\w).*(?<!\w)tree\.")
    assert all(kept.fullmatch(line) for line in capsys.readouterr().out.splitlines())
    assert call(predict.main, monkeypatch, *base, *text, "--infill_pieces", "true") == 0
    assert sum(not kept.fullmatch(line) for line in capsys.readouterr().out.splitlines()) > 10
    assert call(predict.main, monkeypatch, *base, "--infill_pieces", "true") == 2
    assert "infill_pieces is for infill" in capsys.readouterr().err
