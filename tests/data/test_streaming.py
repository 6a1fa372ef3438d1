"""streaming.py: each sentence once per epoch, for any number of readers, and resumption at the exact record."""

import contextlib
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast

from data import shards, streaming
from data.batching import Part
from data.corpus import Source
from data.options import DataArgs
from data.streaming import StreamedBatches, first_held_out, multiprocessing, open_stream
from data.tokenizers import text_of
from tests.conftest import SENTENCES
from tests.data.test_shards import write
from tests.test_main import records, train
from tests.training.test_resume import contents, stop_after
from utils.errors import UserError

SETTINGS = {"batch_size": 5, "max_length": 32, "shuffle_buffer": 200, "num_workers": 0}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Write the sentences to seven shards of unequal size, with blank lines."""
    files = []
    for i, (a, b) in enumerate(itertools.pairwise([0, 3, 40, 41, 100, 170, 239, 240])):
        files.append(tmp_path / f"train-{i:05d}-of-00007.txt")
        files[-1].write_text("\n".join(SENTENCES[a:b]) + "\n" * (i % 3))
    return Source(tuple(files))


@pytest.fixture(autouse=True, params=["cut", "in turns"])
def cut_or_in_turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the files as large, cut into ranges, or as small, whose records are read in turns."""
    if request.param == "cut":
        monkeypatch.setattr(shards, "LEAST_BYTES", 0)


def stream(
    source: Source, tokenizer: BertTokenizerFast, *, held_out_fraction: float = 0.0, **options: object
) -> StreamedBatches:
    """Open a stream; options are fields of DataArgs in SETTINGS, or arguments of StreamedBatches."""
    args = DataArgs("x", **{**SETTINGS, **{key: options.pop(key) for key in [*options] if key in SETTINGS}})
    text = open_stream(source, tokenizer, args, held_out_fraction=held_out_fraction)
    return StreamedBatches(text, seed=1, **options)


def sentences(parts: list[Part], tokenizer: BertTokenizerFast) -> list[str]:
    pairs = [(row, m) for part in parts for row, m in zip(part.batch.input_ids, part.batch.target_mask, strict=True)]
    return [text_of(tokenizer, row[m]) for row, m in pairs]


def epoch_of(streams: list[StreamedBatches], epoch: int, steps: int) -> list[Part]:
    """Batches of one epoch that all processes take in a number of steps."""
    return [part for s in streams for _ in range(steps) for part in s.take() if part.epoch == epoch]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 3), (2, 2), (3, 1)])
def test_an_epoch_reads_every_line_once(source: Source, tokenizer, ranks: int, workers: int) -> None:
    streams = [
        stream(source, tokenizer, num_workers=workers, parts=ranks, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    read = Counter(sentences(epoch_of(streams, 0, 90 // ranks), tokenizer))
    assert len(read) == 240 and set(read.values()) == {1}
    for each in streams:
        each.close()


def test_workers_and_ranks_do_not_change_the_batches(source: Source, tokenizer: BertTokenizerFast) -> None:
    """One process and four processes take equal batches in equal order."""
    alone = stream(source, tokenizer, parts=2)
    one = [sentences([part], tokenizer) for _ in range(60) for part in alone.take()]
    together = [stream(source, tokenizer, parts=2, rank=r, world_size=2, num_workers=2) for r in range(2)]
    both = [sentences(s.take(), tokenizer) for _ in range(60) for s in together]
    assert one == both
    for each in together:
        each.close()


@pytest.mark.parametrize("way", [{}, {"num_workers": 2}, {"batch_size": 3, "shuffle_buffer": 40}])
@pytest.mark.slow
def test_reading_resumes_at_the_exact_record(source: Source, tokenizer: BertTokenizerFast, way: dict) -> None:
    """Resumption within a shard, a pool and an epoch; the position is JSON."""
    for done in (0, 1, 7, 20, 45):
        first = stream(source, tokenizer, parts=2, **way)
        for _ in range(done):
            first.take()
        position = json.loads(json.dumps(first.position()))
        second = stream(source, tokenizer, parts=2, position=position, **way)
        for _ in range(30):
            assert sentences(first.take(), tokenizer) == sentences(second.take(), tokenizer)
        first.close(), second.close()


@pytest.mark.parametrize("after", [1, 2, 4, 3])
def test_another_number_of_processes_continues_with_the_same_batches(
    source, tokenizer, monkeypatch, after: int
) -> None:
    """From two processes to 1, 2, 4, and to 3, which share lanes, with twelve batches per step."""
    pair = [stream(source, tokenizer, parts=12, rank=r, world_size=2) for r in range(2)]
    for each in pair:
        for _ in range(3):
            each.take()
    monkeypatch.setattr(streaming, "from_everyone", lambda thing: [each.positions for each in pair])
    position = json.loads(json.dumps(pair[0].position()))
    expected = [sentences([part], tokenizer) for _ in range(2) for part in sorted_step(pair)]
    later = [stream(source, tokenizer, parts=12, rank=r, world_size=after, position=position) for r in range(after)]
    assert [sentences([part], tokenizer) for _ in range(2) for part in sorted_step(later)] == expected


def sorted_step(streams: list[StreamedBatches]) -> list[Part]:
    """Batches of one step of all processes, in order."""
    return sorted((part for each in streams for part in each.take()), key=lambda part: part.number)


def test_every_epoch_has_its_own_order(source: Source, tokenizer: BertTokenizerFast) -> None:
    first = stream(source, tokenizer)
    parts = [part for _ in range(150) for part in first.take()]
    orders = [sentences([part for part in parts if part.epoch == epoch], tokenizer) for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    assert [s for s in orders[0][:40]] != sorted(orders[0][:40], key=SENTENCES.index)


def test_a_lane_reads_its_pieces_in_another_order_every_epoch(source: Source, tokenizer: BertTokenizerFast) -> None:
    """The order differs over more sentences than one pool holds."""
    reader = stream(source, tokenizer, batch_size=1, shuffle_buffer=8)
    pieces: dict[tuple[int, int], list[int]] = {}
    for _ in range(700):
        for part in reader.take():
            file = int(Path(part.locations()[0].rpartition(":")[0]).name[6:11])
            seen = pieces.setdefault((reader.first % reader.lanes, part.epoch), [])
            if not seen or seen[-1] != file:
                seen.append(file)
    assert any(files != sorted(files) for files in pieces.values())
    assert any(pieces[lane, 0] != pieces[lane, 1] for lane, epoch in pieces if epoch == 1)


def test_batches_report_the_lines_of_their_sentences(source: Source, tokenizer: BertTokenizerFast) -> None:
    part = stream(source, tokenizer, num_workers=1).take()[0]
    for location, text in zip(part.locations(), sentences([part], tokenizer), strict=True):
        file, _, line = location.rpartition(":")
        assert Path(file).read_text().splitlines()[int(line) - 1] == text


def test_held_out_sentences_are_not_streamed(source: Source, tokenizer: BertTokenizerFast) -> None:
    reader = stream(source, tokenizer, held_out_fraction=0.3)
    seen = set(sentences([part for _ in range(60) for part in reader.take()], tokenizer))
    args = DataArgs("x", valid_fraction=0.3, max_length=32)
    aside = first_held_out(source, tokenizer, args, 1000)
    held = {text_of(tokenizer, aside.sentence(i)) for i in range(len(aside))}
    assert not seen & held and len(seen) + len(held) == 240 and len(held) > 40


def test_an_input_error_in_a_worker_is_reported_like_any_other(source: Source, tokenizer: BertTokenizerFast) -> None:
    reader = stream(source, tokenizer, num_workers=2, shuffle_buffer=8)
    source.files[3].unlink()
    with pytest.raises(UserError, match="no longer exists"):
        for _ in range(200):
            reader.take()
    reader.close()


def test_a_worker_sends_no_tensor(source: Source, tokenizer: BertTokenizerFast) -> None:
    """A tensor would occupy /dev/shm and be lost with its worker."""
    text = open_stream(source, tokenizer, DataArgs("x", **SETTINGS))
    one = StreamedBatches(text, seed=1)
    taken = next(iter(one._source._dataset))
    assert not [value for value in (*vars(taken).values(), *taken.arrays.values()) if isinstance(value, torch.Tensor)]
    assert torch.equal(taken.batch().input_ids, one.take()[0].batch.input_ids)


def test_a_failing_worker_is_an_input_error(source: Source, tokenizer, monkeypatch) -> None:
    text = open_stream(source, tokenizer, DataArgs("x", **{**SETTINGS, "num_workers": 1}))
    monkeypatch.setattr(streaming, "tokenize_in_memory", lambda *_, **__: 1 / 0)  # a forked worker inherits this
    message = r"cannot be read \(ZeroDivisionError: division by zero\)"
    with contextlib.closing(StreamedBatches(text, seed=1)) as batches, pytest.raises(UserError, match=message):
        batches.take()


def test_readers_that_cannot_be_started_are_reported(source: Source, tokenizer, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    text = open_stream(source, tokenizer, DataArgs("x", **SETTINGS))
    monkeypatch.setattr(multiprocessing, "Queue", full)
    with pytest.raises(UserError, match="cannot be started .No space left on device.; make room in /dev/shm, or --num"):
        StreamedBatches(text, seed=1)


def test_too_little_text_is_refused(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text("one line.\n")
    reader = stream(Source((tmp_path / "a.txt",)), tokenizer)
    with pytest.raises(UserError, match="too little text for 8 lanes"):
        for _ in range(10):
            reader.take()


@pytest.mark.parametrize("cut_or_in_turns", ["cut"], indirect=True)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt.gz"])
@pytest.mark.slow
def test_a_stopped_streaming_run_resumes_to_equal_weights(monkeypatch, tmp_path: Path, capsys, kind: str) -> None:
    """From the command line, with workers: a run stopped in its fifth step ends with equal weights."""
    write(tmp_path / "shards", kind)
    flags = ["--streaming", "true", "--max_steps", 9, "--shuffle_buffer", 100, "--batch_size", 4, "--spindle", "paper"]
    code, whole = train(monkeypatch, tmp_path / "shards", tmp_path, *flags, name="whole")
    assert code == 0 and "a stream of 3 files, 0.0 MB" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        train(patch, tmp_path / "shards", tmp_path, *flags)
    code, folder = train(monkeypatch, tmp_path / "shards", tmp_path, *flags, "--num_workers", 1)
    assert code == 0 and "resumed after step 5" in capsys.readouterr().out
    assert contents(folder) == contents(whole) and torch.tensor([r["step"] for r in records(folder, "train")])[-1] == 9


def test_invalid_streaming_settings_are_refused(monkeypatch, tmp_path: Path, pairs_folder: Path, capsys) -> None:
    write(tmp_path / "shards", "txt")
    for data, flags, message in (
        (tmp_path / "shards", ["--max_steps", 0], "streaming=true reads a text of unknown length; give max_steps"),
        (pairs_folder, [], "holds pairs; streaming is for text"),
        (tmp_path / "shards", ["--num_workers", -1], "num_workers=-1 must lie in 0..1024"),
    ):
        assert train(monkeypatch, data, tmp_path, "--streaming", "true", *flags)[0] == 2
        assert message in capsys.readouterr().err
