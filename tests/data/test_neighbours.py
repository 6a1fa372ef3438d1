"""neighbours.py: counts and mutual information by hand; tokens of like places get like vectors."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from data.batch import Batch
from data.corpus import scored_source
from data.neighbours import mutual_information, neighbour_counts, neighbour_vectors
from data.options import TextFormat
from data.row_formats import read_rows
from data.tokenizers import train_wordpiece


class Padded:
    """A tokenizer whose [PAD] is 0."""

    pad_token_id = 0


class Rows:
    """A text of given rows of ids; 0 is padding."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows
        self.widths = np.array([len(row) for row in rows])

    def batch(self, indices: np.ndarray, tokenizer: Padded) -> Batch:
        chosen = [self.rows[i] for i in indices]
        ids = torch.zeros(len(chosen), max(map(len, chosen)), dtype=torch.long)
        for row, given in zip(ids, chosen, strict=True):
            row[: len(given)] = torch.tensor(given)
        return Batch(ids, ids.ne(0).long(), ids.ne(0))


def test_neighbours_are_counted_on_both_sides_at_both_distances_and_never_across_rows() -> None:
    counts = neighbour_counts(Rows([[1, 2, 3], [3, 1]]), Padded(), 4).toarray().reshape(4, 4, 4)
    after, before, second_after, second_before = counts.transpose(1, 0, 2)
    assert np.argwhere(after).tolist() == [[1, 2], [2, 3], [3, 1]] and after.sum() == 3
    assert np.array_equal(before, after.T) and np.array_equal(second_before, second_after.T)
    assert np.argwhere(second_after).tolist() == [[1, 3]] and second_after.sum() == 1


def test_padding_that_is_attended_to_is_no_neighbour() -> None:
    """As in target windows of pairs, and in padded rows."""

    class Attended(Rows):
        def batch(self, indices: np.ndarray, tokenizer: Padded) -> Batch:
            batch = super().batch(indices, tokenizer)
            return Batch(batch.input_ids, torch.ones_like(batch.input_ids), batch.target_mask)

    rows = [[1, 2, 3], [3]]
    counts = [neighbour_counts(kind(rows), Padded(), 4).toarray() for kind in (Rows, Attended)]
    assert np.array_equal(*counts)


@pytest.mark.parametrize("rows", [[[2, 2, 2, 2]], [[1], [2]], [[1, 2]]])
@pytest.mark.parametrize("width", [2, 40])
def test_a_text_without_contrasts_leaves_the_embeddings_as_they_are(rows: list, width: int) -> None:
    """A vector of 0 would stop the gradient of a normalised embedding."""
    vectors, known = neighbour_vectors(Rows(rows), Padded(), 4, width)
    assert vectors.shape == (4, width) and vectors.isfinite().all()
    assert torch.equal(vectors.square().mean(1) > 0.99, known)


def test_mutual_information_is_that_of_the_definition() -> None:
    counts = np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 8.0]])
    smoothed = counts.sum(0) ** 0.75
    expected = np.zeros_like(counts)
    for v in range(2):
        for c in range(3):
            if counts[v, c]:
                joint, of_token = counts[v, c] / counts.sum(), counts[v].sum() / counts.sum()
                expected[v, c] = max(0.0, math.log(joint / (of_token * smoothed[c] / smoothed.sum())))
    np.testing.assert_allclose(mutual_information(csr_array(counts)).toarray(), expected, rtol=1e-12)
    assert mutual_information(csr_array((2, 3))).nnz == 0


def test_the_vectors_keep_the_similarities_of_the_exact_decomposition() -> None:
    """Lengths aside, the products of vectors are those of U S U^T, centred."""
    generator = np.random.default_rng(0)
    rows = Rows([generator.integers(1, 12, 9).tolist() for _ in range(400)])
    vectors, known = neighbour_vectors(rows, Padded(), 12, 12)
    information = mutual_information(neighbour_counts(rows, Padded(), 12)).toarray()
    u, s, _ = np.linalg.svd(information, full_matrices=False)
    exact = u * np.sqrt(s)
    exact -= exact[1:].mean(0)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert known.tolist() == [False] + [True] * 11 and not vectors[0].any()
    found = (vectors @ vectors.T / 12).double().numpy()[1:, 1:]
    np.testing.assert_allclose(found, (exact @ exact.T)[1:, 1:], atol=1e-4)


def test_words_of_like_places_are_near_and_a_text_gives_the_same_vectors_again(tmp_path: Path) -> None:
    animals, verbs = ["cat", "dog", "fox", "owl"], ["sees", "likes", "hears", "finds"]
    generator = np.random.default_rng(1)
    lines = [
        f"the {generator.choice(animals)} {generator.choice(verbs)} a {generator.choice(animals)}." for _ in range(400)
    ]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    tokenizer = train_wordpiece(lines, 100)
    text = read_rows(scored_source(str(tmp_path / "text.txt")), TextFormat(), tokenizer, 16, str(tmp_path / "cache"))
    vectors, known = neighbour_vectors(text, tokenizer, len(tokenizer), 32)
    ids = tokenizer.convert_tokens_to_ids([*animals, *verbs])
    assert known[ids].all() and not known[tokenizer.mask_token_id]
    unit = torch.nn.functional.normalize(vectors[ids], dim=1)
    alike, other = (unit @ unit.T)[:4, :4].mean(), (unit @ unit.T)[:4, 4:].mean()
    assert alike > other + 0.5
    assert vectors[known].square().mean().item() == pytest.approx(1, rel=0.01)
    assert torch.equal(neighbour_vectors(text, tokenizer, len(tokenizer), 32)[0], vectors)
