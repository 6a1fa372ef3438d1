"""Metrics that ask a network: BERTScore and MAUVE. Models come from local folders; nothing is downloaded."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.tokenizer_checks import check_tokenizer
from data.tokenizers import read_tokenizer
from models.pretrained import read_network
from utils.errors import UserError
from utils.hub import first_line

BERTSCORE_LAYERS = {
    ("bert", 12): 9,
    ("bert", 24): 18,
    ("roberta", 12): 10,
    ("roberta", 24): 17,
    ("distilbert", 6): 5,
    ("deberta", 24): 18,
    ("deberta", 48): 40,
}
"""The layers that bert-score 0.3.13 uses, by kind of model and number of layers; ("deberta", 48) is DiffuSeq's."""
MAUVE_SCALE, MAUVE_POINTS, MAUVE_VARIANCE, MAUVE_RESTARTS = 5, 25, 0.9, 5


def load_language_model(
    folder: str, *, eval_device: torch.device, kind: type = AutoModel
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model, of a kind, and its tokenizer from a local folder; safetensors only.

    Raises:
        UserError: if it is not there or cannot be read, or a weight is no finite number.
    """
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"{folder}: no such folder; give a model folder made by save_pretrained")
    try:
        path = str(Path(folder).expanduser())
        tokenizer = read_tokenizer(path)
        model, loading = read_network(kind, path)
    except UserError:
        raise
    except Exception as error:  # a damaged model raises anything
        raise UserError(f"{folder}: cannot be read as a model ({first_line(error)})") from error
    check_tokenizer(tokenizer, folder, roles=())
    if lacking := [name for name in loading.missing if "pooler" not in name]:  # no metric looks at a pooler
        raise UserError(f"{folder}: its weights lack {len(lacking)} of {loading.total} tensors, e.g. {lacking[0]}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().to(eval_device), tokenizer


@torch.no_grad()
def hidden_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], layer: int, description: str
) -> Iterator[tuple[list[int], Tensor]]:
    """(token ids, hidden states [tokens, D]) of each text at a layer, 0 being the embeddings."""
    positions = getattr(model.config, "max_position_embeddings", 512)
    padding = getattr(getattr(getattr(model, "embeddings", None), "position_embeddings", None), "padding_idx", None)
    limit = min(tokenizer.model_max_length, positions - (0 if padding is None else padding + 1), 1024)
    with tqdm(total=len(texts), desc=description, unit="text", leave=False, disable=None) as bar:
        for start in range(0, len(texts), 64):
            chunk = list(texts[start : start + 64])
            encoded = tokenizer(chunk, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            if not encoded.input_ids.shape[1]:  # no network takes rows of nothing
                yield from (([], torch.zeros(0, model.config.hidden_size)) for _ in chunk)
                continue
            encoded = encoded.to(model.device)
            states = model(**encoded, output_hidden_states=True).hidden_states[layer]
            if not states.isfinite().all():
                raise UserError(f"{description}: the model's hidden states are not finite; give another model")
            for ids, mask, state in zip(encoded.input_ids, encoded.attention_mask.bool(), states, strict=True):
                yield ids[mask].tolist(), state[mask].cpu()
            bar.update(len(chunk))


# ---- BERTScore (Zhang et al. 2020) -----------------------------------------------------------------------------------


def bert_score(
    hypotheses: Sequence[str], references: Sequence[str], folder: str, layer: int, device: torch.device
) -> list[float]:
    """F1 of greedy cosine matching of contextual embeddings; no idf, no rescaling, as DiffuSeq reports it.

    Words may match the special tokens of the other side, but special tokens are not averaged over.

    Args:
        hypotheses, references: texts, pair by pair.
        folder: a model folder; DiffuSeq's is microsoft/deberta-xlarge-mnli.
        layer: whose output to compare; 0: bert-score's choice for such a model, else the last.
        device: where to run it.

    Returns:
        One F1 a pair; 0 where a side is empty.
    """
    model, tokenizer = load_language_model(folder, eval_device=device)
    depth = model.config.num_hidden_layers
    layer = layer or BERTSCORE_LAYERS.get((model.config.model_type, depth), depth)
    if layer > depth:
        raise UserError(f"bertscore_layer={layer} is more than the {depth} layers of {folder}")
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    sides = (hidden_states(model, tokenizer, side, layer, "BERTScore") for side in (hypotheses, references))
    return [greedy_f1(*hypothesis, *reference, special) for hypothesis, reference in zip(*sides, strict=True)]


def greedy_f1(hypothesis: list[int], h: Tensor, reference: list[int], r: Tensor, special: set[int]) -> float:
    """Harmonic mean of how well each side's words find a partner on the other side."""
    similarity = torch.nn.functional.normalize(h, dim=-1) @ torch.nn.functional.normalize(r, dim=-1).T
    words_h, words_r = ([i for i, token in enumerate(ids) if token not in special] for ids in (hypothesis, reference))
    if not words_h or not words_r:
        return 0.0
    precision, recall = similarity.amax(1)[words_h].mean(), similarity.amax(0)[words_r].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


# ---- MAUVE (Pillutla et al. 2021) ------------------------------------------------------------------------------------


def mauve(samples: Sequence[str], references: Sequence[str], folder: str, seed: int, device: torch.device) -> float:
    """Area under the divergence curve between quantised embeddings of samples and references, in (0, 1].

    Settings of mauve-text: state of the last token, unit length, PCA to 90 % of the variance, a tenth as many k-means
    clusters as the smaller set has texts, scale 5. Its k-means is another program's, so the third digit may differ.

    Args:
        samples, references: texts; both sets should be of like size, thousands each.
        folder: a causal language model's folder.
        seed: of k-means.
        device: where to run the model.

    Raises:
        UserError: if the model's tokenizer makes nothing of a text.
    """
    model, tokenizer = load_language_model(folder, eval_device=device)
    features = []
    for name, texts in (("sample", samples), ("reference", references)):
        found = hidden_states(model, tokenizer, [text or " " for text in texts], -1, "MAUVE")
        states = [state[-1:] for _, state in found]
        if empty := [i for i, state in enumerate(states, start=1) if not len(state)]:
            raise UserError(f"mauve_model={folder}: its tokenizer makes nothing of {name} {empty[0]}; leave that out")
        features.append(torch.cat(states).double().numpy())
    p, q = quantise(*features, seed)
    return area(divergence_curve(p, q))


def quantise(samples: np.ndarray, references: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of both sets over common clusters, each float64 [clusters] with sum 1."""
    count = max(2, round(min(len(samples), len(references)) / 10))
    together = np.concatenate([samples, references])
    together = together / np.linalg.norm(together, axis=1, keepdims=True).clip(1e-12)
    centred = together - together.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(scale**2) / np.sum(scale**2).clip(1e-300)
    kept = int(np.argmax(share >= MAUVE_VARIANCE)) + 1
    reduced = (left * scale)[:, :kept]
    best, labels = np.inf, np.zeros(len(reduced), dtype=int)
    for restart in range(MAUVE_RESTARTS):
        centres, found = kmeans2(reduced, count, iter=100, minit="++", rng=np.random.default_rng([seed, restart]))
        error = ((reduced - centres[found]) ** 2).sum()
        if error < best:
            best, labels = error, found
    sides = labels[: len(samples)], labels[len(samples) :]
    p, q = (np.bincount(side, minlength=count) / len(side) for side in sides)
    return p, q


def divergence_curve(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Points (exp(-c KL(q | r)), exp(-c KL(p | r))) for mixtures r of p and q, float64 [points + 2, 2]."""
    points = [(1.0, 0.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, MAUVE_POINTS):
        r = weight * p + (1 - weight) * q
        points.append((np.exp(-MAUVE_SCALE * kl(q, r)), np.exp(-MAUVE_SCALE * kl(p, r))))
    return np.array([*points, (0.0, 1.0)])


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Kullback-Leibler divergence in nats; q is positive wherever p is."""
    where = p > 0
    return float((p[where] * np.log(p[where] / q[where])).sum())


def area(curve: np.ndarray) -> float:
    """Area under the curve, the mean of integrating along either axis."""
    x, y = curve.T
    along_x, along_y = np.lexsort((-y, x)), np.lexsort((-x, y))  # of points above each other the upper one first
    return float((np.trapezoid(y[along_x], x[along_x]) + np.trapezoid(x[along_y], y[along_y])) / 2)
