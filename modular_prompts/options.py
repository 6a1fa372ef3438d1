"""Sizes of a pool of prompts, and lengths and rates of tuning and search."""

from dataclasses import dataclass, replace

from utils.errors import UserError


@dataclass(frozen=True)
class PoolShape:
    """Sizes of a pool."""

    num_modules: int
    """K."""
    length: int
    """P, tokens of a prompt."""
    hidden_size: int
    """D."""
    num_layers: int = 1
    """Layers whose input gets a prompt, from the first on; 1: shallow."""
    intrinsic_size: int = 0
    """d, numbers of a module's code; 0: free modules."""

    def __post_init__(self) -> None:
        for name in ("num_modules", "length", "hidden_size", "num_layers", "intrinsic_size"):
            if type(getattr(self, name)) is not int:
                raise UserError(f"{name}={getattr(self, name)!r} must be a whole number")
        for name in ("num_modules", "length", "hidden_size", "num_layers"):
            if not 1 <= getattr(self, name) <= 10**5:
                raise UserError(f"{name}={getattr(self, name)} must lie in 1..100000")
        if not 0 <= self.intrinsic_size <= 10**5:
            raise UserError(f"intrinsic_size={self.intrinsic_size} must lie in 0..100000; 0: free modules")


@dataclass(frozen=True)
class Stage:
    """Length and rate of a stage of tuning."""

    steps: int
    learning_rate: float
    """At the first step; it falls linearly to 0."""
    batch_size: int = 0
    """Rows per step, drawn anew for each; 0: all."""
    check_every: int = 0
    """Steps between looks at the development rows, by which a step is chosen; 0: the last step is kept."""

    def longer(self, steps: int) -> "Stage":
        """Return this stage with further steps."""
        return replace(self, steps=self.steps + steps)


@dataclass(frozen=True)
class Search:
    """Settings of a search."""

    calls: int
    """Most calls."""
    population: int = 10
    """Calls per generation."""
    sigma: float = 1.0
    """Standard deviation of the first generation."""
    seed: int = 0


@dataclass(frozen=True)
class Stages:
    """Settings of the methods."""

    router: Stage = Stage(60, 0.2, 32, 10)
    prompt: Stage = Stage(40, 5e-3, 32, 10)
    network: Stage = Stage(100, 3e-5, 32, 10)
    """For all weights of the network."""
    adapter: Stage = Stage(100, 1e-3, 32, 10)
    """For LoRA adapters."""
    search_router: Search = Search(200)
    search_code: Search = Search(500, sigma=0.1)
    from_seen: bool = True
    """Whether tuning of a router may start at a seen task's."""
    drop_worse: bool = True
    """Whether a learned prompt is dropped if the network alone answers the development rows better."""
    rank: int = 8
    """r of the LoRA adapters."""
