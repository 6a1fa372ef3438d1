"""The `released` mode against numbers recorded from the released program (tests/golden/official_*.json).

Each file states its formula (`what`), its inputs and the tolerance at which a float64 re-implementation agreed. With
the betas in single precision, as the program has them, all but its losses agree to a millionth.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.batch import Batch
from diffusion.masked.word_freq_released import (
    EPSILON,
    ReleasedConditionalDiffusion,
    ReleasedWordFreqDiffusion,
    released_betas,
)
from diffusion.options import SampleArgs
from diffusion.process import Vocabulary
from diffusion.process_options import WordFreqArgs
from diffusion_word_freq import base_alpha_bar, log_frequency

GOLDEN = Path(__file__).parents[2] / "golden"


def load(name: str) -> dict:
    return json.loads((GOLDEN / f"official_{name}.json").read_text())


STATE, WORD_FREQ = load("state"), load("word_freq")
NOISE, POSTERIOR, KL, ELBO, SAMPLING = (load(n) for n in ("noise", "posterior", "kl", "elbo", "sampling_step"))
V, MASK = 8, 3
COUNTS = torch.tensor(WORD_FREQ["inputs"]["counts"]).index_fill(0, torch.tensor([WORD_FREQ["inputs"]["pad_id"]]), 0)
X0 = torch.tensor(KL["inputs"]["x0"])
TARGET = torch.tensor(KL["inputs"]["target_mask"]).bool()
BATCH = Batch(X0, TARGET, TARGET)


class Toy:
    """The recorded denoisers A and B; `decode` is the identity."""

    time_conditioned = True

    def __init__(self, name: str, num_steps: int) -> None:
        self.name, self.num_steps = name, num_steps

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        b, position, v = (torch.arange(1, 1 + n, dtype=torch.float64) for n in (*xt.shape, V))
        phase = 0.1 * b[:, None, None] * position[None, :, None] + 0.37 * (v - 1)
        if self.name == "B":
            phase = phase + 0.05 * xt[..., None] + 0.2 * t[:, None, None] / self.num_steps
        return phase.sin()

    def decode(self, hidden: Tensor) -> Tensor:
        return hidden


def process_of(case: dict) -> ReleasedWordFreqDiffusion:
    args = WordFreqArgs(
        num_steps=case["T"],
        schedule=case.get("kind", "mutual"),
        spindle="released",
        word_freq_lambda=case.get("spindle_lambda", 0.3),
        posterior="released",
    )
    return ReleasedWordFreqDiffusion(args, COUNTS, Vocabulary(len(COUNTS), MASK))


def close(ours: Tensor | float, recorded: list | float, rtol: float, atol: float) -> None:
    ours = torch.as_tensor(ours, dtype=torch.float64)
    torch.testing.assert_close(
        ours, torch.tensor(recorded, dtype=torch.float64).reshape(ours.shape), rtol=rtol, atol=atol
    )


def rows(step: int) -> Tensor:
    return torch.full((2,), step)


@pytest.mark.parametrize("name", STATE["cases"])
def test_the_schedule_and_its_betas_are_the_recorded_ones(name: str) -> None:
    case = STATE["cases"][name]
    process = process_of({"T": case["T"], "kind": case["kind"]})
    close(process.schedule.base[case["index"]], case["alpha_bar"], 1e-6, 1e-9)
    close(released_betas(case["kind"], case["T"])[case["beta_index"]], case["beta"], 1e-6, 0)
    index = torch.tensor(case["beta_index"])
    close(process.schedule.base_kernel(index, index + 1), case["beta"], 1e-6, 0)  # the last one is below 1
    exact = base_alpha_bar(case["kind"], case["T"])
    close(exact[case["index"]], case["alpha_bar"], 5e-5, 1e-6)  # equal up to the program's single precision


@pytest.mark.parametrize("name", STATE["cases"])
def test_the_spindle_amplitude_is_the_recorded_one(name: str) -> None:
    case = STATE["cases"][name]
    process = process_of({"T": case["T"], "kind": "mutual"})
    t = torch.tensor(case["index"])
    one = torch.tensor(1.0, dtype=torch.float64)
    rise = process.schedule.alpha_bar(t, -0.001 * one) - process.schedule.alpha_bar(t, 0.001 * one)
    inside = (process.schedule.base[t] < 0.998) & (t < case["T"])  # outside, the clip at 0.999 hides the amplitude
    recorded = [a for a, keep in zip(case["spindle_lambda_at_0p3"], inside, strict=True) if keep]
    close(rise[inside] / 0.002, recorded, 1e-6, 1e-8)


def test_word_frequencies_are_the_recorded_ones() -> None:
    inputs, outputs = WORD_FREQ["inputs"], WORD_FREQ["outputs"]
    close(log_frequency(torch.tensor(inputs["counts"])), outputs["w"], 1e-6, 1e-7)
    close(log_frequency(COUNTS), outputs["w_pad_zero"], 1e-6, 1e-7)
    length = max(map(len, inputs["sentences"]))
    x = torch.tensor([s + [0] * (length - len(s)) for s in inputs["sentences"]])
    target = torch.tensor([[i < len(s) for i in range(length)] for s in inputs["sentences"]])
    process = process_of({"T": 8})
    h = process.schedule.informativeness_of(
        process.schedule.statistic[x], process.schedule.sentence_mean(x, target)[:, None]
    )
    close(torch.where(target, -h, 0.0), outputs["word_freq_logits"], 1e-6, 1e-7)


@pytest.mark.parametrize("case", NOISE["cases"], ids=lambda c: f"{c['T']}-{c['kind']}-{c['spindle_lambda']}-{c['t']}")
def test_the_forward_marginals_are_the_recorded_ones(case: dict) -> None:
    process = process_of(case)
    keep = process.alpha_bar(rows(case["t"]), X0, TARGET)
    recorded = torch.tensor(case["prob_keep_x0"]).double()
    close(keep[TARGET], recorded[TARGET].tolist(), 1e-6, 1e-7)
    if "full_table_soft_q0" in case:
        probs = Toy("A", case["T"]).encode(X0, rows(1), TARGET).softmax(-1)
        h = process.schedule.informativeness_of(
            process.schedule.statistic[X0], process.schedule.sentence_mean(X0, TARGET)[:, None]
        )
        close(process.soft_marginal(probs, rows(case["t"]), h)[0], case["full_table_soft_q0"], 1e-6, 2e-7)


@pytest.mark.parametrize("case", POSTERIOR["cases"], ids=lambda c: f"{c['T']}-{c['t']}-{c['step_size']}")
def test_the_posterior_is_the_recorded_one(case: dict) -> None:
    process = process_of(case)
    s, t, xt = rows(case["t"]), rows(case["t"] + case["step_size"]), torch.tensor(case["x_t_plus_step"])
    masked = xt.eq(MASK) & TARGET
    visible = ~xt.eq(MASK) & TARGET
    recorded = torch.tensor(case["posterior_onehot_x0_at_x0"])
    close(process.posterior(X0, s, t, TARGET)[masked], recorded[masked].tolist(), 1e-6, 2e-7)
    assert (recorded[visible] == 1).all()  # not evaluated by this code
    transition = process.transition(xt, s, t, V).gather(-1, X0[..., None]).squeeze(-1)
    close(transition[TARGET], torch.tensor(case["transition_at_x0"])[TARGET].tolist(), 1e-5, 1e-7)
    probs = Toy("A", case["T"]).encode(xt, t, TARGET).softmax(-1)
    h = process.schedule.informativeness_of(
        process.schedule.statistic[X0], process.schedule.sentence_mean(X0, TARGET)[:, None]
    )
    close(process.reverse_probs(probs, xt, s, t, h)[0], case["posterior_soft_x0_full_b0"], 1e-5, 1e-7)


@pytest.mark.parametrize("case", KL["cases"], ids=lambda c: "-".join(str(v) for v in list(c.values())[:5]))
def test_the_training_loss_is_the_recorded_one(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    process, toy = process_of(case), Toy(case["toy"], case["T"])
    s, t, xt = rows(case["t"]), rows(case["t"] + case["step_size"]), torch.tensor(case["x_t_plus_step"])
    kl, cross_entropy = process.token_terms(toy, BATCH, xt, s, t)
    hybrid = KL["inputs"]["hybrid_lambda"] * cross_entropy.sum()
    close(kl.sum(), case["base_loss"], 1e-4, 1e-7)  # recorded in single precision, with 1 - p for p near 1
    close(hybrid, case["hybrid_loss"], 1e-6, 1e-7)
    close(kl.sum() + hybrid, case["loss"], 1e-4, 1e-7)
    close(kl[TARGET], torch.tensor(case["kl_per_token"])[TARGET].tolist(), 1e-4, 1e-6)
    close(cross_entropy[TARGET], torch.tensor(case["ce_x0_per_token"])[TARGET].tolist(), 1e-6, 1e-7)
    h = process.schedule.informativeness_of(
        process.schedule.statistic[X0], process.schedule.sentence_mean(X0, TARGET)[:, None]
    )
    reverse = process.reverse_probs(toy.encode(xt, t, TARGET).softmax(-1), xt, s, t, h)
    ce_pt = -(reverse.gather(-1, X0[..., None]).squeeze(-1) + EPSILON).log()
    close(ce_pt[TARGET], torch.tensor(case["ce_pt_per_token"])[TARGET].tolist(), 1e-5, 1e-6)
    logits = toy.encode(xt, t, TARGET).requires_grad_()
    monkeypatch.setattr(toy, "encode", lambda xt, t, attention_mask: logits)
    (gradient,) = torch.autograd.grad(process.token_terms(toy, BATCH, xt, s, t)[0].sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("case", ELBO["cases"], ids=lambda c: "-".join(str(v) for v in list(c.values())[:5]))
def test_the_elbo_is_the_recorded_one(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = torch.tensor(ELBO["inputs"]["u"], dtype=torch.float64)
    monkeypatch.setattr("diffusion.masked.transitions.uniform", lambda where, generator=None: fixed)
    process = process_of(case)
    num_steps = case["T"] // case["eval_step_size"]
    bound = process.bound(Toy(case["toy"], case["T"]), BATCH, num_steps)
    elbo = bound.total.sum()
    close(elbo, case["elbo"], 1e-6, 1e-6)
    close((bound.diffusion + bound.reconstruction).sum(), case["likelihood"], 1e-6, 1e-6)
    close(bound.prior.sum(), case["prior"], 1e-6, 1e-6)
    close(elbo / (torch.log(torch.tensor(2.0)) * TARGET.sum()), case["elbo_in_bits_per_dim"], 1e-6, 1e-6)
    assert num_steps == case["network_evaluations"]


@pytest.mark.parametrize("case", SAMPLING["cases"], ids=lambda c: "-".join(str(v) for v in list(c.values())[:5]))
def test_a_sampling_step_is_the_recorded_one(case: dict) -> None:
    process = process_of(case)
    xt = torch.tensor(SAMPLING["inputs"]["x_t"])
    everything = torch.ones_like(TARGET)  # the released sampler centres over all positions
    batch = Batch(xt, everything, everything)
    args = SampleArgs(temperature=case["temperature"], top_k=case["top_k"])
    s, t = rows(case["t"] - case["step_size"]), rows(case["t"])
    probs = process.sampling_probs(Toy("A", case["T"]).encode(xt, t, everything), batch, xt, s, t, args)
    close(probs[0], case["prob_b0"], 1e-5, 1e-6)
    close(probs[1, 0], case["prob_b1_l0"], 1e-5, 1e-6)


class ConditionalToy:
    """Denoiser of the recorded conditional case."""

    time_conditioned = True

    def encode(self, xt: Tensor, t: Tensor, attention_mask: Tensor) -> Tensor:
        position, v = torch.arange(5.0).double(), torch.arange(8.0).double()
        phase = 0.7 * v + 0.3 * position[None, :, None] + 0.1 * xt[..., None] + 0.05 * t[:, None, None]
        return 2 * phase.cos()

    def decode(self, hidden: Tensor) -> Tensor:
        return hidden


CONDITIONAL_XT = torch.tensor([[1, 4, 4, 6, 4], [4, 6, 4, 4, 3]])
CONDITIONAL_TARGET = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()


@pytest.mark.parametrize(
    ("s", "loss", "base"), [(0, 16.6441612, 16.6391697), (3, 2.2806630, 2.2757957)], ids=["last step", "step 3"]
)
def test_the_conditional_training_loss_is_the_recorded_one(s: int, loss: float, base: float) -> None:
    """lambda 0, hybrid 3e-4: the recorded loss counts target positions only, for any source."""
    args = WordFreqArgs(8, spindle="released", word_freq_lambda=0.0, posterior="released", hybrid_lambda=3e-4)
    process = ReleasedConditionalDiffusion(args, torch.tensor([0, 10, 0, 500, 0, 7, 99, 3]), Vocabulary(8, 4))
    x0 = torch.tensor([[1, 3, 5, 6, 7], [2, 6, 6, 1, 3]])
    batch = Batch(x0, torch.ones_like(CONDITIONAL_TARGET), CONDITIONAL_TARGET)
    kl, cross_entropy = process.token_terms(ConditionalToy(), batch, CONDITIONAL_XT, rows(s), rows(s + 1))
    close(kl.sum(), base, 1e-5, 1e-5)
    close(kl.sum() + args.hybrid_lambda * cross_entropy.sum(), loss, 1e-5, 1e-5)
    assert not kl[~CONDITIONAL_TARGET].any() and not cross_entropy[~CONDITIONAL_TARGET].any()


def test_the_last_conditional_step_draws_masked_targets_from_the_prediction() -> None:
    """The released program redraws every target from the prediction; here only masked targets are drawn."""
    args = WordFreqArgs(8, spindle="released", word_freq_lambda=0.0, posterior="released")
    process = ReleasedConditionalDiffusion(args, torch.tensor([0, 10, 0, 500, 0, 7, 99, 3]), Vocabulary(8, 4))
    batch = Batch(CONDITIONAL_XT, torch.ones_like(CONDITIONAL_TARGET), CONDITIONAL_TARGET)
    logits = ConditionalToy().encode(CONDITIONAL_XT, rows(2), batch.attention_mask)
    probs = process.sampling_probs(logits, batch, CONDITIONAL_XT, rows(0), rows(2), SampleArgs())
    masked = CONDITIONAL_XT.eq(4) & CONDITIONAL_TARGET
    tokens = torch.tensor([0, 1, 2, 3, 5, 6, 7])  # without [MASK], which is excluded at the end
    ours, prediction = (p[masked][:, tokens] for p in (probs, logits.softmax(-1)))
    close(ours / ours.sum(-1, keepdim=True), (prediction / prediction.sum(-1, keepdim=True)).tolist(), 1e-6, 1e-9)
    for seed in range(20):
        u = torch.rand(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        xs = process.reverse_step(ConditionalToy(), batch, CONDITIONAL_XT, 0, 2, SampleArgs(), u)
        assert torch.equal(xs[~masked], CONDITIONAL_XT[~masked]) and not xs[masked].eq(4).any()


def test_a_visible_token_costs_zero_where_the_released_program_returns_nan() -> None:
    """lambda 0, t = T - 1, a token still visible at T: 0/0 in the released posterior."""
    process = process_of({"T": 8, "spindle_lambda": 0.0})
    kl, _ = process.token_terms(Toy("A", 8), BATCH, X0, rows(7), rows(8))
    assert torch.equal(kl, torch.zeros_like(kl))


def test_the_weights_of_the_released_elbo_do_not_sum_to_one() -> None:
    """A bound needs sum_t (1 - alpha_bar(t)) u = 1; the released posterior gives rare tokens less, common ones more."""
    process = process_of({"T": 2048})
    weights = []
    for c in (-0.3, 0.0, 0.2):
        h = torch.tensor(-c, dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for s in range(0, 2048, 16):
            s, t = torch.tensor([s]), torch.tensor([s + 16])
            keep = process.schedule.alpha_bar(s, h)
            reveal = process.schedule.base_kernel(s, t)[0] * keep
            total += ((1 - process.schedule.alpha_bar(t, h)) * reveal / (reveal + 1 - keep)).item()
        weights.append(total.item())
    assert weights == pytest.approx([0.844, 1.000, 1.102], abs=2e-3)
