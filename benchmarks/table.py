"""The README's table of speed, out of the committed results.

python benchmarks/table.py benchmarks/results/amd-epyc-2-cores.small.json
"""

import json
import sys
from pathlib import Path

ROWS = (
    ("training step / stock masked-LM step", "train_ratio", None),
    ("the same with `--hybrid_lambda 0.01`", "train_ratio_hybrid", "matrix_train_ratio_hybrid"),
    ("the same without spindle", "train_ratio_lambda0", None),
    ("growth of its memory / that of the stock step", "train_memory_ratio", "matrix_train_memory_ratio"),
    ("its time at vocabulary 30,522 / at 8,192", "vocab_growth", None),
    ("share of a batch's slots that hold tokens (LM1B cut at 64, `--max_tokens`)", "slots_buckets", None),
    ("sampling / as many rows of a bare forward, batch 4", "sample_overhead_b4", "matrix_sample_overhead_b4"),
    ("the same, batch 32", "sample_overhead_b32", None),
    ("the same, batch 32, with the spindle", "sample_overhead_spindle", None),
    ("forwards for 64 rows of 128 tokens, T = 1000", "forwards_lambda0", "matrix_forwards"),
    ("the same with the spindle", "forwards_spindle", "matrix_forwards"),
    ("a term of the bound / a bare forward", "elbo_term_ratio", "matrix_elbo_term_ratio"),
    ("spread of the bound / that of every window, no spindle", "elbo_sd_ratio_lambda0", None),
    ("the same with the spindle", "elbo_sd_ratio_spindle", None),
)


def cell(value: float | list[float] | None) -> str:
    """A number, or the median with the least and the most."""
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{value[1]:.2f} ({value[0]:.2f} to {value[2]:.2f})"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def table(figures: dict) -> str:
    """Markdown; rows without a figure are left out."""
    lines = ["| | here | formulas in [B, L, V] |", "|---|---|---|"]
    for label, key, matrix_key in ROWS:
        if key in figures:
            lines.append(f"| {label} | {cell(figures[key])} | {cell(figures.get(matrix_key))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
