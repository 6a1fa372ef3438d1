"""Print the table of docs/speed.md from the committed results.

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
    ("time of the training step at vocabulary 30,522 / at 8,192", "vocab_growth", "matrix_vocab_growth"),
    ("`--fused_loss`: time / without, 64 rows", "fused_ratio", None),
    ("`--fused_loss`: growth of memory / without, 64 rows", "fused_memory_ratio", None),
    ("share of slots that hold tokens, LM1B cut at 64, 64 random sentences a batch", "slots_random", None),
    ("the same, like lengths together (`--max_tokens`)", "slots_buckets", None),
    ("the same, rows filled with several (`--packing`)", "slots_packing", None),
    ("tokens a second / those of random batches, `--max_tokens`", "tokens_ratio_buckets", None),
    ("the same, `--packing`", "tokens_ratio_packing", None),
    ("sampling / as many rows of a bare forward, batch 4", "sample_overhead_b4", "matrix_sample_overhead_b4"),
    ("the same, batch 32", "sample_overhead_b32", None),
    ("the same, batch 32, with the spindle", "sample_overhead_spindle", None),
    ("growth of its memory / that of a bare forward, batch 16", "sample_memory_ratio", "matrix_sample_memory_ratio"),
    ("forwards for 64 rows of 128 tokens, T = 1000", "forwards_lambda0", "matrix_forwards"),
    ("the same with the spindle", "forwards_spindle", "matrix_forwards"),
    ("a term of the bound / a bare forward", "elbo_term_ratio", "matrix_elbo_term_ratio"),
    ("growth of its memory / that of a bare forward", "elbo_memory_ratio", "matrix_elbo_memory_ratio"),
    ("spread of the bound / that of every window, no spindle", "elbo_sd_ratio_lambda0", None),
    ("the same with the spindle", "elbo_sd_ratio_spindle", None),
)


def cell(value: float | list[float] | None) -> str:
    """Format a number, or the median with minimum and maximum."""
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{value[1]:.2f} ({value[0]:.2f} to {value[2]:.2f})"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if 0.97 < value < 1 else f"{value:.2f}"


def table(figures: dict) -> str:
    """Return the Markdown table, without rows that have no figure."""
    lines = ["| | here | formulas in [B, L, V] |", "|---|---|---|"]
    for label, key, matrix_key in ROWS:
        if key in figures:
            lines.append(f"| {label} | {cell(figures[key])} | {cell(figures.get(matrix_key))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
