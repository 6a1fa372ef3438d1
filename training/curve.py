"""Picture of a run: training loss and validation bound over steps, drawn from its JSONL log."""

from pathlib import Path

from training.run_log import read_log
from utils.files import rename


def draw_curve(log: Path, picture: Path) -> None:
    """Plot training loss and validation bound over steps from a JSONL log; write a PNG.

    The warm start is shaded: at its end the mask rates rise, and the loss with them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_log(log)
    train = _without_short_end([r for r in records if r["kind"] == "train"])
    valid = [r for r in records if r["kind"] == "valid"]
    warm = [r for r in train if r.get("warm_start")]
    later = [r for r in train if not r.get("warm_start")]
    figure, axis = pyplot.subplots(figsize=(8, 4.5), dpi=120)
    for phase, label in ((later, "training loss"), (warm, "" if later else "training loss")):
        axis.plot([r["step"] for r in phase], [_plotted(r) for r in phase], lw=0.8, color="C0", label=label)
    if warm:
        rates = str(records[0].get("warm_start_rates", "")).replace(",", " to ")
        axis.axvspan(0, warm[-1]["step"], color="C0", alpha=0.1, lw=0, label=f"warm start: mask rates {rates}")
    axis.plot(
        [r["step"] for r in valid], [_plotted(r) for r in valid], "o-", color="C1", ms=4, label="validation bound"
    )
    if valid:
        unigram = valid[-1]["unigram_bits_per_token"]
        axis.axhline(unigram, ls=":", color="grey", label="unigram model")
        if valid[-1]["bits_per_token"] > 1.3 * unigram:  # the run diverged; a linear axis would hide the rest
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.3 * unigram)
    axis.set(xlabel="step", ylabel="bits per token", title=log.parent.name)
    axis.legend(loc="best")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    beside = picture.with_name(f".{picture.name}.unfinis_")
    figure.savefig(beside, format="png")
    rename(beside, picture)
    pyplot.close(figure)


def _without_short_end(train: list[dict]) -> list[dict]:
    """Leave out a last point that is the mean of far fewer steps than the others, and so only noise."""
    if len(train) < 3:
        return train
    (before, previous, last) = (record["step"] for record in train[-3:])
    return train[:-1] if 2 * (last - previous) < previous - before else train


def _plotted(record: dict) -> float:
    bits = record["bits_per_token"]
    return float("nan") if bits is None else min(bits, 1e9)  # a diverged run: matplotlib fails at 1e300
