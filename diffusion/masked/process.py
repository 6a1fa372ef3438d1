"""Base class of the masked processes: estimation of the bound and sampling.

A subclass gives MaskedTransitions a schedule, declares its samplers and estimators, and adds a loss. For a short
example see mdlm.py.
"""

import math

from torch import Tensor

from data.batch import Batch
from diffusion.draws import Generators
from diffusion.masked import ordered, stepwise
from diffusion.masked.bound import estimate
from diffusion.masked.row_clocks import RowClocks
from diffusion.masked.transitions import MaskedTransitions
from diffusion.options import EXACT, ORDERED, BoundArgs, SampleArgs
from diffusion.process import Bound, Denoiser, StepCallback
from utils.errors import UserError

ROW_CLOCKS = "row-clocks"


class MaskedProcess(MaskedTransitions):
    """Masked process with a Bayes posterior and, by default, one alpha_bar for all tokens."""

    samplers = (ROW_CLOCKS, "ancestral", "cached", "confidence", "remdm", ORDERED)
    limit_samplers: tuple[str, ...] = (ROW_CLOCKS,)
    """Samplers for the limit of ever finer steps, num_steps=inf."""
    estimators = ("windows", "stratified", "masked-count", "trajectory")
    limit_estimators = ("masked-count", "trajectory")

    def _bound(
        self, denoiser: Denoiser, batch: Batch, num_steps: float, args: BoundArgs, generator: Generators
    ) -> Bound:
        if args.estimator == EXACT:
            if ORDERED not in self.samplers:
                raise UserError(
                    f"estimator={EXACT} is the likelihood of sampler={ORDERED}, which this process lacks; give another "
                    "estimator, or --posterior exact"
                )
            return ordered.likelihood(self, denoiser, batch, args)
        return estimate(self, denoiser, batch, num_steps, args, generator=generator)

    def check_sampling(self, args: SampleArgs) -> None:
        """See Process."""
        args.require_tokens("a masked process")
        name = self.samplers[0] if args.sampler == "auto" else args.sampler
        if name not in self.samplers:
            raise UserError(f"sampler={name} does not suit this process; it has {', '.join(self.samplers)}")
        if name == ORDERED:
            return
        if math.isfinite(args.num_steps):
            self.schedule.windows(int(args.num_steps))
        elif not self.limit_samplers:
            raise UserError("num_steps=inf: this process is sampled in whole steps; give a number of steps")
        elif name not in self.limit_samplers:
            raise UserError(f"num_steps=inf is for sampler={', '.join(self.limit_samplers)}; give a number of steps")

    def _sample(
        self,
        denoiser: Denoiser,
        batch: Batch,
        args: SampleArgs,
        rows_at_once: int,
        generator: Generators,
        on_step: StepCallback | None,
    ) -> Tensor:
        name = self.samplers[0] if args.sampler == "auto" else args.sampler
        if name == ROW_CLOCKS:
            return RowClocks(self, denoiser, batch, args, generator).run(rows_at_once, on_step)
        if name == ORDERED:
            return ordered.sample(self, denoiser, batch, args, rows_at_once, generator, on_step)
        return stepwise.sample(self, denoiser, batch, args, name, rows_at_once, generator, on_step)
