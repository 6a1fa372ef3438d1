"""Metrics that use a pretrained network: BERTScore and MAUVE.

They are implemented here, with the settings of bert-score 0.3.13 and mauve-text, to compare with published numbers
without further dependencies (mauve-text needs faiss and scikit-learn). Networks are read from local folders as
safetensors only; nothing is downloaded.
"""

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
"""Layers used by bert-score 0.3.13, by model type and number of layers; DiffuSeq uses ("deberta", 48)."""
MAUVE_SCALE, MAUVE_POINTS, MAUVE_VARIANCE, MAUVE_RESTARTS = 5, 25, 0.9, 5
"""mauve-text's scaling factor, points of the divergence curve, explained variance of the PCA, and k-means restarts."""


def load_language_model(
    folder: str, *, eval_device: torch.device, kind: type = AutoModel
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model of an AutoModel class, and its tokenizer, from a local folder; safetensors only.

    Raises:
        UserError: if the folder is missing or cannot be read, or a weight is not finite.
    """
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"{folder}: no such folder; give a model folder made by save_pretrained")
    try:
        path = str(Path(folder).expanduser())
        tokenizer = read_tokenizer(path)
        model, loading = read_network(kind, path)
    except UserError:
        raise
    except Exception as error:  # a damaged model may raise any type
        raise UserError(f"{folder}: cannot be read as a model ({first_line(error)}); give another folder") from error
    check_tokenizer(tokenizer, folder, roles=())
    if lacking := [name for name in loading.missing if "pooler" not in name]:  # no metric uses the pooler
        reason = f"its weights lack {len(lacking)} of {loading.total} tensors, e.g. {lacking[0]}"
        raise UserError(f"{folder}: {reason}; give a complete model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval().to(eval_device), tokenizer


@torch.no_grad()
def hidden_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], layer: int, description: str
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield token ids and hidden states [tokens, D] of each text at a layer; layer 0 is the embeddings."""
    positions = getattr(model.config, "max_position_embeddings", 512)
    padding = getattr(getattr(getattr(model, "embeddings", None), "position_embeddings", None), "padding_idx", None)
    limit = min(tokenizer.model_max_length, positions - (0 if padding is None else padding + 1), 1024)
    with tqdm(total=len(texts), desc=description, unit="text", leave=False, disable=None) as bar:
        for start in range(0, len(texts), 64):
            chunk = list(texts[start : start + 64])
            encoded = tokenizer(chunk, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            if not encoded.input_ids.shape[1]:  # networks do not accept empty rows
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
    """Return F1 of greedy cosine matching of contextual embeddings, without idf and rescaling, as DiffuSeq reports it.

    Tokens may match special tokens of the other text, but special tokens do not enter the averages.

    Args:
        hypotheses, references: texts of equal number.
        folder: model folder; DiffuSeq uses microsoft/deberta-xlarge-mnli.
        layer: layer whose output is compared; 0: bert-score's layer for the model, or the last if it has none.
        device: device of the model.

    Returns:
        One F1 per pair; 0 if one of its texts is empty.

    Raises:
        UserError: if the model cannot be loaded or has fewer layers.
    """
    model, tokenizer = load_language_model(folder, eval_device=device)
    depth = model.config.num_hidden_layers
    layer = layer or BERTSCORE_LAYERS.get((model.config.model_type, depth), depth)
    if layer > depth:
        raise UserError(f"bertscore_layer={layer} is more than the {depth} layers of {folder}; give 0 to {depth}")
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    sides = (hidden_states(model, tokenizer, side, layer, "BERTScore") for side in (hypotheses, references))
    return [greedy_f1(*hypothesis, *reference, special) for hypothesis, reference in zip(*sides, strict=True)]


def greedy_f1(hypothesis: list[int], h: Tensor, reference: list[int], r: Tensor, special: set[int]) -> float:
    """Return the harmonic mean of precision and recall; each token is matched to its most similar counterpart.

    Args:
        hypothesis, reference: token ids.
        h, r: their hidden states [tokens, D].
        special: token ids that do not enter the averages.
    """
    similarity = torch.nn.functional.normalize(h, dim=-1) @ torch.nn.functional.normalize(r, dim=-1).T
    text_h, text_r = ([i for i, token in enumerate(ids) if token not in special] for ids in (hypothesis, reference))
    if not text_h or not text_r:
        return 0.0
    precision, recall = similarity.amax(1)[text_h].mean(), similarity.amax(0)[text_r].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


# ---- MAUVE (Pillutla et al. 2021) ------------------------------------------------------------------------------------


def mauve(samples: Sequence[str], references: Sequence[str], folder: str, seed: int, device: torch.device) -> float:
    """Return the area under the divergence curve between quantized embeddings of samples and references, in (0, 1].

    Settings of mauve-text: hidden state of the last token, unit norm, PCA to 90 % of the variance, scale 5, and one
    k-means cluster per ten texts of the smaller set. Its k-means is faiss's, so the third digit may differ.

    Args:
        samples, references: texts; the sets should have similar sizes, thousands each.
        folder: folder of a causal language model.
        seed: seed of k-means.
        device: device of the model.

    Raises:
        UserError: if the model's tokenizer returns no token for a text.
    """
    model, tokenizer = load_language_model(folder, eval_device=device)
    features = []
    for name, texts in (("sample", samples), ("reference", references)):
        found = hidden_states(model, tokenizer, [text or " " for text in texts], -1, "MAUVE")
        states = [state[-1:] for _, state in found]
        if empty := [i for i, state in enumerate(states, start=1) if not len(state)]:
            raise UserError(f"mauve_model={folder}: its tokenizer has no token for {name} {empty[0]}; leave that out")
        features.append(torch.cat(states).double().numpy())
    p, q = quantize(*features, seed)
    return area(divergence_curve(p, q))


def quantize(samples: np.ndarray, references: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return histograms of both sets over common k-means clusters, each float64 [clusters] with sum 1."""
    count = max(2, round(min(len(samples), len(references)) / 10))
    reduced = principal_components(np.concatenate([samples, references]))
    best, labels = np.inf, np.zeros(len(reduced), dtype=int)
    for restart in range(MAUVE_RESTARTS):
        centres, found = kmeans2(reduced, count, iter=100, minit="++", rng=np.random.default_rng([seed, restart]))
        error = ((reduced - centres[found]) ** 2).sum()
        if error < best:
            best, labels = error, found
    sides = labels[: len(samples)], labels[len(samples) :]
    p, q = (np.bincount(side, minlength=count) / len(side) for side in sides)
    return p, q


def principal_components(features: np.ndarray) -> np.ndarray:
    """Scale features [n, D] to unit norm and project them on the components that explain 90 % of the variance."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    centred = features - features.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(scale**2) / np.sum(scale**2).clip(1e-300)
    kept = int(np.argmax(share >= MAUVE_VARIANCE)) + 1
    return (left * scale)[:, :kept]


def divergence_curve(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return points (exp(-c KL(q | r)), exp(-c KL(p | r))) for mixtures r of p and q, float64 [points + 2, 2]."""
    points = [(1.0, 0.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, MAUVE_POINTS):
        r = weight * p + (1 - weight) * q
        points.append((np.exp(-MAUVE_SCALE * kl(q, r)), np.exp(-MAUVE_SCALE * kl(p, r))))
    return np.array([*points, (0.0, 1.0)])


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """Return the Kullback-Leibler divergence in nats; q must be positive wherever p is."""
    where = p > 0
    return float((p[where] * np.log(p[where] / q[where])).sum())


def area(curve: np.ndarray) -> float:
    """Return the area under the curve, averaged over integration along both axes."""
    x, y = curve.T
    along_x, along_y = np.lexsort((-y, x)), np.lexsort((-x, y))  # points of equal x by descending y, and vice versa
    return float((np.trapezoid(y[along_x], x[along_x]) + np.trapezoid(x[along_y], y[along_y])) / 2)
