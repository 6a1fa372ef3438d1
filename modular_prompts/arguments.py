"""Settings of the commands, each declared once."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from modular_prompts.options import PoolShape, Search, Stage, Stages
from utils.command_line import PRECISIONS
from utils.errors import UserError, check_choices, check_ranges

if TYPE_CHECKING:
    from modular_prompts.tasks import Task

READOUT_NAMES = "verbaliser", "cosine", "spans", "window"
"""Names of `frozen.READOUTS`."""
LONGEST = 128
"""Default of max_length, where the network allows it."""
MOST_RATE = 1e3
EVALUATIONS = 10
"""Evaluations of a pre-training without --eval_steps."""
BASELINES = "random-prompt-longer", "linear-probe", "full", "lora"
TUNING = "none", "uniform", "router", "prompts", "router-then-prompts", "random-prompt", *BASELINES
"""Methods of tune."""
SEARCHES = "none", "uniform", "router", "router-then-code"
"""Methods of blackbox, which use the scores of the network only."""
DROP_WORSE = "no prompt for a task whose development rows the network alone answers better"


# ---- shared ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrozenArgs:
    """Network that stays as it is, and its read-out."""

    group: ClassVar[str] = "frozen network"

    model_name_or_path: str = field(
        metadata={"help": "network: a folder, a name on the hub, minilm, or a checkpoint of main.py"}
    )
    readout: str = field(
        default="auto",
        metadata={
            "choices": ["auto", *READOUT_NAMES],
            "help": "read-out; auto: window for a checkpoint of pairs, else verbaliser, or cosine if the head is new",
        },
    )
    max_length: int = field(
        default=0,
        metadata={"help": f"tokens of a row, prompt included; 0: {LONGEST}, or fewer positions; unused by window"},
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, max_length=(0, 10**6))
        if not self.model_name_or_path.strip():
            raise UserError("model_name_or_path is empty; give a folder, a name on the hub, or minilm")


@dataclass(frozen=True)
class MachineArgs:
    """Number format and device."""

    group: ClassVar[str] = "machine"

    precision: str = field(
        default="auto", metadata={"choices": list(PRECISIONS), "help": "number format of the network"}
    )
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: torch's default"})
    device: str = field(default="auto", metadata={"help": "device: auto, cpu, cuda, cuda:N or mps"})

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class TaskArgs:
    """Tasks."""

    group: ClassVar[str] = "tasks"

    tasks: str = field(metadata={"help": "folders of tasks by comma, or folders that contain such folders"})
    split: str = field(
        default="", metadata={"help": 'value of "split" in the cards of the tasks to take; default: all'}
    )
    language: str = field(default="", metadata={"help": 'value of "language" in these cards; default: all'})

    def load(self) -> "list[Task]":
        """Read the tasks."""
        from modular_prompts.tasks import find_tasks, load_task

        return [load_task(folder) for folder in find_tasks(self.tasks, self.split, self.language)]


# ---- pretrain --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoolArgs:
    """Modules."""

    group: ClassVar[str] = "prompts"

    num_modules: int = field(default=8, metadata={"help": "modules K; 1: one prompt for all tasks"})
    prompt_length: int = field(default=10, metadata={"help": "tokens of a prompt, P"})
    num_layers: int = field(default=0, metadata={"help": "layers with prompts, from the first; 0: all; 1: shallow"})
    intrinsic_size: int = field(
        default=0, metadata={"help": "size d of a module's code, for blackbox; 0: free modules"}
    )

    def __post_init__(self) -> None:
        check_ranges(self, num_modules=(1, 10**4), prompt_length=(1, 10**4), num_layers=(0, 10**4))
        check_ranges(self, intrinsic_size=(0, 10**5))

    def shape(self, layers: int, hidden_size: int) -> PoolShape:
        """Return the sizes of the pool for a network with so many layers.

        Raises:
            UserError: if the network has fewer layers.
        """
        if self.num_layers > layers:
            raise UserError(f"num_layers={self.num_layers}: the network has {layers}; give at most these, or 0 for all")
        return PoolShape(
            self.num_modules, self.prompt_length, hidden_size, self.num_layers or layers, self.intrinsic_size
        )


@dataclass(frozen=True)
class RunArgs:
    """Output folder, evaluations and saved states."""

    group: ClassVar[str] = "run"

    output_dir: str = field(metadata={"help": "folder for prompts, states and log"})
    eval_steps: int = field(default=0, metadata={"help": f"steps between evaluations; 0: {EVALUATIONS} in all"})
    unseen: str = field(
        default="",
        metadata={"help": "folders of tasks to keep unseen; training rows that share a text with them are left out"},
    )
    valid_rows: int = field(default=64, metadata={"help": "rows of a task for validation, a fifth of it at most"})
    save_minutes: float = field(default=5.0, metadata={"help": "minutes between saved states"})
    keep_last: int = field(default=2, metadata={"help": "number of saved states to keep"})
    time_limit: float = field(default=0.0, metadata={"help": "minutes until the process saves and ends; 0: none"})
    resume: str = field(
        default="auto",
        metadata={
            "choices": ["auto", "true", "false"],
            "help": "continuation; auto: if settings are equal; true: also longer",
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "replacement of the run in output_dir"})

    def __post_init__(self) -> None:
        check_choices(self)
        check_ranges(self, eval_steps=(0, 10**9), valid_rows=(1, 10**6), keep_last=(1, 10**6))
        check_ranges(self, save_minutes=(1e-3, 1e6), time_limit=(0, 1e6))
        if not self.output_dir.strip():
            raise UserError("output_dir is empty; give a folder for the run")


@dataclass(frozen=True)
class PretrainArgs:
    """Settings of multi-task pre-training."""

    group: ClassVar[str] = "training"

    max_steps: int = field(default=5000, metadata={"help": "optimizer steps"})
    tasks_per_step: int = field(default=4, metadata={"help": "number of tasks in a step; all if there are fewer"})
    rows_per_task: int = field(default=4, metadata={"help": "rows of each task in a step"})
    prompt_rate: float = field(
        default=5e-3, metadata={"help": "learning rate of modules and span head; falls linearly to 0"}
    )
    router_rate: float = field(default=5e-2, metadata={"help": "learning rate of the routers; falls linearly to 0"})
    temperature: float = field(default=1.0, metadata={"help": "temperature of the gates' draws; small: near 0 or 1"})
    seed: int = field(default=0, metadata={"help": "random seed of the modules and of all draws"})

    def __post_init__(self) -> None:
        check_ranges(self, max_steps=(1, 10**9), tasks_per_step=(1, 10**4), rows_per_task=(1, 10**6))
        check_ranges(self, seed=(0, 2**63 - 1))
        for name in ("prompt_rate", "router_rate", "temperature"):
            if not 0 < getattr(self, name) <= MOST_RATE:
                raise UserError(f"{name}={getattr(self, name)} must be above 0, and at most {MOST_RATE:g}")


# ---- tune and blackbox -----------------------------------------------------------------------------------------------


def chosen_methods(names: str, known: tuple[str, ...]) -> list[str]:
    """Return the names of a setting `methods`, in order.

    Raises:
        UserError: for an unknown name.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted or [""]:
        if name not in known:
            raise UserError(f"methods={names}: {name!r} is none of {', '.join(known)}")
    return wanted


@dataclass(frozen=True)
class FewShotArgs:
    """Prompts, examples and output."""

    group: ClassVar[str] = "few examples"

    prompts: str = field(metadata={"help": "folder of prompts written by pretrain"})
    output_dir: str = field(metadata={"help": "folder for results and prompts"})
    model_name_or_path: str = field(
        default="", metadata={"help": "frozen network, if it is a folder; default: by its name"}
    )
    shots: int = field(
        default=16, metadata={"help": "training rows per label; twice as many in all for tasks without labels"}
    )
    develop_shots: int = field(
        default=0, metadata={"help": "development rows at most, counted like shots; 0: as many as shots"}
    )
    seeds: str = field(default="8,13,21,42,100", metadata={"help": "seeds of the examples, by comma"})
    test_rows: int = field(default=0, metadata={"help": "first rows of the test file to answer; 0: all"})

    def __post_init__(self) -> None:
        check_ranges(self, shots=(1, 10**6), develop_shots=(0, 10**6), test_rows=(0, 10**9))
        _ = self.each_seed
        if not self.output_dir.strip():
            raise UserError("output_dir is empty; give a folder")

    @property
    def each_seed(self) -> list[int]:
        """The seeds."""
        try:
            found = [int(seed) for seed in self.seeds.split(",")]
        except ValueError as error:
            raise UserError(f"seeds={self.seeds}: must be whole numbers by comma") from error
        if len(set(found)) < len(found) or not all(0 <= seed < 2**31 for seed in found):
            raise UserError(f"seeds={self.seeds}: must be different, and lie in 0..{2**31 - 1}")
        return found


@dataclass(frozen=True)
class TuneArgs:
    """Methods by gradient."""

    group: ClassVar[str] = "tuning"

    methods: str = field(
        default="none,uniform,router,router-then-prompts",
        metadata={"help": f"methods by comma, of {', '.join(TUNING)}"},
    )
    router_start: str = field(
        default="seen",
        metadata={"choices": ["seen", "uniform"], "help": "first router: the best of the seen tasks', or uniform"},
    )
    router_steps: int = field(default=60, metadata={"help": "steps of the router"})
    router_rate: float = field(default=0.2, metadata={"help": "learning rate of the router; falls linearly to 0"})
    prompt_steps: int = field(default=40, metadata={"help": "steps of the prompt; random-prompt-longer: of both"})
    prompt_rate: float = field(default=5e-3, metadata={"help": "learning rate of the prompt; falls linearly to 0"})
    network_steps: int = field(default=100, metadata={"help": "steps of full and lora"})
    network_rate: float = field(default=3e-5, metadata={"help": "learning rate of full"})
    lora_rate: float = field(default=1e-3, metadata={"help": "learning rate of lora"})
    lora_rank: int = field(default=8, metadata={"help": "rank of lora"})
    batch_size: int = field(default=32, metadata={"help": "rows per step; 0: all"})
    check_every: int = field(
        default=10,
        metadata={"help": "steps between looks at the development rows, which choose the step; 0: the last step"},
    )
    drop_worse: bool = field(default=True, metadata={"help": DROP_WORSE})

    def __post_init__(self) -> None:
        _ = self.chosen  # checks it
        check_choices(self)
        names = ("router_steps", "prompt_steps", "network_steps", "batch_size", "check_every")
        check_ranges(self, **dict.fromkeys(names, (0, 10**9)), lora_rank=(1, 4096))
        for name in ("router_rate", "prompt_rate", "network_rate", "lora_rate"):
            if not 0 < getattr(self, name) <= 1e3:
                raise UserError(f"{name}={getattr(self, name)} must be above 0, and at most 1000")

    @property
    def chosen(self) -> list[str]:
        """The methods."""
        return chosen_methods(self.methods, TUNING)

    @property
    def stages(self) -> Stages:
        """The stages."""
        each = {"router": "router", "prompt": "prompt", "network": "network", "adapter": "lora"}
        return Stages(
            **{
                stage: Stage(
                    self.network_steps if name == "lora" else getattr(self, f"{name}_steps"),
                    getattr(self, f"{name}_rate"),
                    self.batch_size,
                    self.check_every,
                )
                for stage, name in each.items()
            },
            from_seen=self.router_start == "seen",
            rank=self.lora_rank,
            drop_worse=self.drop_worse,
        )


@dataclass(frozen=True)
class BlackBoxArgs:
    """Methods by scores alone. A call scores all training rows once."""

    group: ClassVar[str] = "search"

    methods: str = field(
        default="none,uniform,router", metadata={"help": f"methods by comma, of {', '.join(SEARCHES)}"}
    )
    calls: int = field(default=200, metadata={"help": "calls of the search of the router"})
    code_calls: int = field(default=500, metadata={"help": "calls of the search of the code"})
    population: int = field(default=10, metadata={"help": "calls per generation of CMA-ES"})
    sigma: float = field(default=1.0, metadata={"help": "standard deviation of the router's first generation"})
    code_sigma: float = field(default=0.1, metadata={"help": "standard deviation of the code's first generation"})
    drop_worse: bool = field(default=True, metadata={"help": DROP_WORSE})

    def __post_init__(self) -> None:
        _ = self.chosen  # checks it
        check_ranges(self, calls=(3, 10**7), code_calls=(3, 10**7), population=(2, 10**6))
        check_ranges(self, sigma=(1e-6, 5), code_sigma=(1e-6, 1e3))
        if self.population >= min(self.calls, self.code_calls):
            raise UserError(
                f"population={self.population} must be below calls={self.calls} and code_calls={self.code_calls}"
            )

    @property
    def chosen(self) -> list[str]:
        """The methods."""
        return chosen_methods(self.methods, SEARCHES)

    @property
    def stages(self) -> Stages:
        """The searches."""
        return Stages(
            search_router=Search(self.calls, self.population, self.sigma),
            search_code=Search(self.code_calls, self.population, self.code_sigma),
            drop_worse=self.drop_worse,
        )


# ---- evaluate and predict --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateArgs:
    """Prompts whose tasks are evaluated."""

    group: ClassVar[str] = "evaluation"

    prompts: str = field(metadata={"help": "folder of prompts"})
    model_name_or_path: str = field(
        default="", metadata={"help": "frozen network, if it is a folder; default: by its name"}
    )
    test_rows: int = field(default=0, metadata={"help": "first rows of each test file to answer; 0: all"})

    def __post_init__(self) -> None:
        check_ranges(self, test_rows=(0, 10**9))


@dataclass(frozen=True)
class PredictArgs:
    """Task, rows and answers."""

    group: ClassVar[str] = "prediction"

    prompts: str = field(metadata={"help": "folder of prompts"})
    task: str = field(metadata={"help": "name of one of its tasks"})
    data: str = field(metadata={"help": "rows, .jsonl, with or without answers; or .txt, a text on each line"})
    output: str = field(default="", metadata={"help": "file for the answers, .jsonl; default: standard output"})
    model_name_or_path: str = field(
        default="", metadata={"help": "frozen network, if it is a folder; default: by its name"}
    )
    batch_size: int = field(default=64, metadata={"help": "rows per batch; changes scores by rounding only"})
    seed: int = field(default=0, metadata={"help": "random seed of answers that are drawn"})

    def __post_init__(self) -> None:
        check_ranges(self, batch_size=(1, 10**6), seed=(0, 2**63 - 1))
        if self.output and not self.output.endswith(".jsonl"):
            raise UserError(f"output={self.output}: must end in .jsonl")


@dataclass(frozen=True)
class RoutersArgs:
    """Prompts whose routers are shown."""

    group: ClassVar[str] = "routers"

    prompts: str = field(metadata={"help": "folder of prompts"})
    picture: str = field(default="", metadata={"help": "file for a heat map, .png; default: none"})

    def __post_init__(self) -> None:
        if self.picture and not self.picture.endswith(".png"):
            raise UserError(f"picture={self.picture}: must end in .png")
