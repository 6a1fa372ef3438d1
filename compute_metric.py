"""Metrics of predictions (seq2seq) or of samples (unconditional text).

python compute_metric.py --predictions out/qqp/predictions.jsonl
python compute_metric.py --predictions out/qqp/predictions.jsonl --train_data conditional_data/qqp \
    --tokenizer out/qqp/checkpoint
python compute_metric.py --predictions samples.txt --references test.txt --tokenizer out/lm1b/checkpoint \
    --train_data train.txt
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluation.options import MetricArgs
from utils import figures, hub, job
from utils.command_line import parse, run_script
from utils.errors import require_finite
from utils.messages import note

if TYPE_CHECKING:
    from evaluation.metric_report import Report


def main() -> None:
    """Compute the metrics and print the report."""
    (args,) = parse([MetricArgs], __doc__)
    job.require_single("compute_metric.py")
    hub.quiet_libraries()
    # imported here, since --help and refused settings need no torch
    from data.corpus import announce
    from evaluation.metric_report import measure
    from utils.device import set_up_cpu

    set_up_cpu(args.threads)
    report, source = measure(args)
    models = [m for m in (args.bertscore_model, args.mauve_model, args.judge_model) if m]
    require_finite(
        report,
        f"look for NaN in the weights of {', '.join(models)}" if models else "report it: a fault of this program",
    )
    if source is not None:
        announce({"references": source})
    for text in report["notes"]:
        note(text)
    print(figures.as_json(report) if args.json else table(report))


def table(report: Report) -> str:
    """Format one metric per line, with its standard error if it has one; notes are omitted."""
    lines = []
    for name, value in report.items():
        if name.endswith("_se") or name == "notes":
            continue
        error = report.get(f"{name}_se")
        shown = figures.number(value, 4) if value is None or isinstance(value, float) else f"{value}"
        lines.append(f"{name:20}{shown:>10}" + (f" ± {figures.number(error, 4)}" if error is not None else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
