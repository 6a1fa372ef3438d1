"""mdlm.py: the recorded losses and reverse steps of the released MDLM; the mean training loss is the bound."""

import math

import pytest
import torch

from data.batch import Batch
from diffusion.draws import Share
from diffusion.masked.mdlm import MdlmDiffusion
from diffusion.masked.noise_schedules import SCHEDULES, geometric
from diffusion.options import SampleArgs
from diffusion.process import Vocabulary
from diffusion.process_options import MdlmArgs
from diffusion.time_density import UNIFORM, TimeDensity
from tests.conftest import TableDenoiser, text_batch
from tests.toy_family import Recorded, V, limit_bound, mdlm, recorded
from utils.errors import UserError

LOSSES, STEPS, OUTPUTS = recorded("losses"), recorded("sampling_step"), recorded("parameterization")
MASK8 = LOSSES["inputs"]["mask_id"]
X0, XT = (torch.tensor(LOSSES["inputs"][name]) for name in ("x0", "x_t"))
BATCH = Batch(X0, torch.ones_like(X0, dtype=torch.bool), torch.ones_like(X0, dtype=torch.bool))
SETTINGS = ("parameterization", "T", "noise", "time_conditioning", "importance_sampling", "change_of_variables")


def subs(cases: list[dict]) -> list[dict]:
    return [case for case in cases if case["parameterization"] == "subs"]


def process_of(case: dict) -> MdlmDiffusion:
    """Return the process of a recorded case, with a vocabulary of eight."""
    args = MdlmArgs(
        noise=case.get("noise", "loglinear"),
        num_steps=case.get("T", 0),
        importance_sampling=case.get("importance_sampling", False),
        change_of_variables=case.get("change_of_variables", False),
    )
    process = MdlmDiffusion(args, Vocabulary(8, MASK8))
    if args.noise == "geometric":
        process.schedule.noise = geometric(1e-3, 1.0)  # the schedule of the recordings
    return process


def name_of(case: dict) -> str:
    return " ".join(f"{key}={case[key]}" for key in SETTINGS[1:] if case.get(key))


def cross_entropies(process: MdlmDiffusion, case: dict, t: torch.Tensor) -> torch.Tensor:
    denoiser = Recorded(time_conditioned=case["time_conditioning"])
    return process.token_terms(denoiser, BATCH, XT, t, t, with_kl=False)[1]


@pytest.mark.parametrize("case", subs(LOSSES["cases"]), ids=name_of)
def test_the_loss_of_a_token_is_the_recorded_one(case: dict) -> None:
    process = process_of(case)
    t = process.draw_time((torch.tensor(case["t_drawn"]).double() - 1e-3) / (1 - 1e-3))
    if not case["change_of_variables"]:
        torch.testing.assert_close(t, torch.tensor(case["t_used"]).double(), rtol=1e-4, atol=1e-6)
    raw_weight = process.schedule.noise.weight(t) if case["noise"] == "geometric" else process.weight(t)
    found = cross_entropies(process, case, t) * raw_weight[:, None]
    if case["loss_mean"] == "nan":  # 0/0 in the released code at t = 1/T; the limit here
        assert found.isfinite().all() and found[0, 0] == pytest.approx(1000 * cross_entropies(process, case, t)[0, 0])
        found, expected = found[1], torch.tensor(case["loss_per_token"][1]).double()
    else:
        expected = torch.tensor(case["loss_per_token"]).double()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("case", subs(LOSSES["cases"]), ids=name_of)
def test_the_mask_rate_is_the_recorded_one(case: dict) -> None:
    process = process_of(case)
    t = process.draw_time((torch.tensor(case["t_drawn"]).double() - 1e-3) / (1 - 1e-3))
    raw = 1 - process.schedule.noise.alpha_bar(t)
    torch.testing.assert_close(raw, torch.tensor(case["move_chance"]).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", subs(OUTPUTS["cases"]), ids=lambda case: str(case["time_conditioning"]))
def test_the_prediction_is_the_recorded_one(case: dict) -> None:
    """[MASK] has probability 0, and visible tokens are not predicted."""
    process, t = process_of({}), torch.tensor(OUTPUTS["inputs"]["t"]).double()
    found = process.predict(Recorded(time_conditioned=case["time_conditioning"]), BATCH, XT, t)
    expected = torch.tensor(case["output"]).double()
    assert (found.probs[:, MASK8] == 0).all()
    torch.testing.assert_close(
        found.probs.double().log()[:, [0, 1, 2, 4, 5, 6, 7]],
        expected[XT.eq(MASK8)][:, [0, 1, 2, 4, 5, 6, 7]],
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(
        process.time_input(t).double(), torch.tensor(OUTPUTS["inputs"]["sigma"]).double(), rtol=1e-4, atol=0
    )
    visible = expected[~XT.eq(MASK8)].argmax(-1)
    assert torch.equal(visible, XT[~XT.eq(MASK8)])


@pytest.mark.parametrize(
    "case", subs(STEPS["cases"]), ids=lambda c: f"{c['algorithm']} {c['noise']} {c['t']} {c['dt']}"
)
def test_a_reverse_step_is_the_recorded_one(case: dict) -> None:
    """ddpm, its cached form and the analytic step have one distribution, up to the schedule.

    The cached form uses the closed alpha_bar, 1 - t. The others are compared at the released mask rates.
    """
    process, algorithm = process_of(case), case["algorithm"]
    t = torch.tensor(case["t"], dtype=torch.float64)
    s = torch.zeros_like(t) if algorithm == "denoiser" else t - case["dt"]
    denoiser, masked = Recorded(time_conditioned=case["time_conditioning"]), XT.eq(MASK8)
    logits = denoiser.encode(XT, process.time_input(t[None]).expand(2), BATCH.attention_mask)[masked]
    if algorithm != "ddpm_cache":
        process.schedule.noise = RawSchedule(process.schedule.noise)
    stay, weights = process.reverse_step(logits, SampleArgs(), s, t)
    stay = torch.zeros_like(stay) if algorithm == "denoiser" else stay
    found = (weights * (1 - stay)[:, None]).index_copy(1, torch.tensor([MASK8]), stay[:, None])
    torch.testing.assert_close(found, torch.tensor(case["prob"]).double()[masked], rtol=2e-3, atol=1e-4)


class RawSchedule:
    """A schedule without rescaled ends, as released."""

    def __init__(self, schedule: object) -> None:
        self.closed, self.sigma = schedule.alpha_bar, schedule.sigma


@pytest.mark.parametrize("density", [UNIFORM, TimeDensity(0.4, 0.3)])
@pytest.mark.parametrize("settings", [{}, {"noise": "cosine"}, {"noise": "geometric"}, {"noise": "linear"}])
def test_the_mean_of_the_loss_is_the_bound_in_continuous_time(settings: dict, density: TimeDensity) -> None:
    """The bound is the same for every schedule and every density of times."""
    process, x0 = mdlm(sampling_eps=1e-6, **settings), torch.tensor([0, 2, 1])
    batch, share = text_batch(x0.expand(4000, -1)), Share(density=density)
    losses = torch.stack([process.loss(TableDenoiser(V), batch, share=share).total / 4000 for _ in range(20)])
    error = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - limit_bound(process, TableDenoiser(V), x0)) < 5 * error


@pytest.mark.parametrize("settings", [{"importance_sampling": True}, {"change_of_variables": True}])
def test_importance_sampling_has_the_same_mean(settings: dict) -> None:
    """Excluded are mask rates below 0.001, which are never drawn, and the 0.014 % of the released constant."""
    process, x0 = mdlm(**settings), torch.tensor([0, 2, 1])
    losses = torch.stack(
        [process.loss(TableDenoiser(V), text_batch(x0.expand(4000, -1))).total / 4000 for _ in range(20)]
    )
    expected = limit_bound(process, TableDenoiser(V), x0)
    assert abs(losses.mean() - expected) < 5 * losses.std() / math.sqrt(len(losses)) + 4e-3 * expected


@pytest.mark.parametrize("density", [UNIFORM, TimeDensity(0.4, 0.3)])
def test_the_mean_of_the_discrete_time_loss_is_the_bound_of_its_steps(density: TimeDensity) -> None:
    from tests.toy_family import exact_bound

    process, x0 = mdlm(num_steps=6, sampling_eps=1e-6), torch.tensor([0, 2, 1])
    batch, share = text_batch(x0.expand(6000, -1)), Share(density=density)
    losses = torch.stack([process.loss(TableDenoiser(V), batch, share=share).total / 6000 for _ in range(20)])
    error = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - exact_bound(process, TableDenoiser(V), x0, 6)) < 5 * error


class Fixed:
    """Denoiser with the constant logits of the released program's small example."""

    time_conditioned = False
    logits = torch.tensor(
        [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1, 0, -1, 0.5, -0.5, 2], [0] * 6, [-1, 2, 0.3, 0, 1, -2]], dtype=torch.float64
    )

    def encode(self, xt: torch.Tensor, t: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(xt), -1, -1)

    def decode(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.clone()


def test_the_mean_over_padded_rows_is_the_recorded_one() -> None:
    """Recorded: losses (3.438833, 0, 3.218876, 0) at t = .5, and 2.219236, their mean with the last one a [PAD]."""
    process = MdlmDiffusion(MdlmArgs(), Vocabulary(6, 5))
    everything, text = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, True, True, False]])
    half = torch.tensor([0.5], dtype=torch.float64)
    xt = torch.tensor([[5, 0, 5, 5]])  # the [PAD] is noised too
    for targets, divisor, recorded_mean in ((everything, 4, None), (text, 3, 2.219236)):
        batch = Batch(torch.tensor([[1, 0, 3, 4]]), everything, targets, everything)
        nats = process.token_terms(Fixed(), batch, xt, half, half, with_kl=False)[1] * process.weight(half)
        torch.testing.assert_close(nats[0, :3], torch.tensor([3.438833, 0, 3.218876]).double(), rtol=1e-5, atol=1e-6)
        assert (nats.sum() / divisor == pytest.approx(recorded_mean, rel=1e-5)) if recorded_mean else nats[0, 3] > 0


def test_uniform_weights_are_one_in_expectation() -> None:
    """With a network that gives every token the same loss c, the expected total is c per target token."""
    for noise in SCHEDULES:
        process = mdlm(noise=noise, loss_weighting="uniform", sampling_eps=1e-6)
        for density in (UNIFORM, TimeDensity(0.4, 0.3)):
            batch, share = text_batch(torch.zeros(20_000, 6, dtype=torch.long)), Share(density=density)
            loss = process.loss(TableDenoiser(V, scale=0.0), batch, share=share)
            assert loss.total.item() / 120_000 == pytest.approx(math.log(4), rel=0.03)


def test_times_are_stratified_over_the_batch_and_the_step() -> None:
    process = mdlm()
    for part in range(2):
        u = torch.sort(
            process_times(process, 100, Share(part, 2, 7)),
        ).values
        assert ((u * 100).long() == torch.arange(100)).double().mean() > 0.85


def process_times(process: MdlmDiffusion, n: int, share: Share) -> torch.Tensor:
    from diffusion.draws import stratified_uniform

    return process.draw_time(stratified_uniform(n, torch.Generator().manual_seed(3), share))


def test_the_time_input_is_sigma_or_the_drawn_u() -> None:
    t = torch.tensor([0.0, 0.3, 1.0]).double()
    time_input = mdlm().time_input(t)
    torch.testing.assert_close(time_input, torch.tensor([0.0, 0.356246501, 6.907755]), rtol=1e-4, atol=1e-6)
    time_input = mdlm(change_of_variables=True).time_input(
        mdlm(change_of_variables=True).draw_time(torch.tensor([0.0, 0.5, 0.999]))
    )
    torch.testing.assert_close(time_input, torch.tensor([0.001, 0.5005, 0.999]), rtol=1e-3, atol=1e-4)  # the drawn u
    assert geometric().sigma(torch.tensor(1.0)).item() == pytest.approx(20)


def test_invalid_settings_are_refused() -> None:
    for settings, message in (
        ({"importance_sampling": True, "change_of_variables": True}, "exclude each other"),
        ({"importance_sampling": True, "num_steps": 8}, "needs continuous time"),
        ({"sampling_eps": 0.0}, "sampling_eps=0.0 must lie in"),
        ({"num_steps": -1}, "num_steps=-1 must lie in 0..1000000"),
        ({"noise": "pink"}, "noise='pink' must be one of loglinear, cosine"),
    ):
        with pytest.raises(UserError, match=message):
            MdlmArgs(**settings)
    with pytest.raises(UserError, match="time_conditioning=token counts whole steps"):
        MdlmArgs().check_time("token")
