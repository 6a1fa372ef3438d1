"""The command routers: which modules each task uses, as a table, and as a picture.

python -m modular_prompts routers --prompts out/prompts/checkpoint --picture routers.png
"""

from pathlib import Path

import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor

from modular_prompts.arguments import RoutersArgs
from modular_prompts.pool import normalised
from modular_prompts.saved import PROMPT, ROUTER, Description, by_task, read_tensors
from utils import files
from utils.errors import UserError
from utils.messages import speak


def routers(args: RoutersArgs) -> None:
    """Print the weights of the modules for each task; draw them."""
    if args.picture:
        files.require_writable("picture", Path(args.picture))
    path = files.local_path(args.prompts)
    tensors = read_tensors(path, Description.read(path))
    alone = {task for task, prompt in by_task(tensors, PROMPT).items() if not prompt.shape[1]}
    found = ordered({task: logits for task, logits in by_task(tensors, ROUTER).items() if task not in alone})
    if not found:
        raise UserError(f"prompts {args.prompts}: no task with a prompt; pre-train some")
    width = max(4, *map(len, found))
    modules = len(next(iter(found.values())))
    speak(f"{'task':{width}}  " + "".join(f"  m{k + 1:<4}" for k in range(modules)))
    for task, weights in found.items():
        speak(f"{task:{width}}  " + "".join(f"  {weight:.3f}" for weight in weights.tolist()))
    if alone:
        speak(f"without a prompt: {', '.join(sorted(alone))}")
    if args.picture:
        draw(found, Path(args.picture))
        speak(f"written to {args.picture}")


def weights_of(logits: Tensor) -> Tensor:
    """Return the weights of the modules, [K], of router logits [1 or layers, K]; their mean over the layers."""
    return normalised(torch.sigmoid(logits)).mean(0)


def ordered(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of each task; similar tasks are neighbours, as in a clustering by average linkage."""
    found = {task: weights_of(logits[task]) for task in sorted(logits)}
    if len(found) < 3:
        return found
    leaves = leaves_list(linkage(torch.stack(list(found.values())).double().numpy(), "average"))
    tasks = list(found)
    return {tasks[i]: found[tasks[i]] for i in leaves}


def draw(weights: dict[str, Tensor], picture: Path) -> None:
    """Write a heat map of weights, one row a task, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values = torch.stack(list(weights.values())).numpy()
    figure, axis = pyplot.subplots(figsize=(1.5 + 0.5 * values.shape[1] + 1.5, 1.2 + 0.22 * len(values)), dpi=120)
    image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=0)
    axis.set_yticks(range(len(values)), [task.replace("$", r"\$") for task in weights], fontsize=8)
    axis.set_xticks(range(values.shape[1]), [str(k + 1) for k in range(values.shape[1])])
    axis.set(xlabel="module", title="weights of the modules")
    figure.colorbar(image, ax=axis, fraction=0.05)
    figure.tight_layout()
    with files.written_whole(picture, binary=True) as file:
        figure.savefig(file, format="png")
    pyplot.close(figure)
