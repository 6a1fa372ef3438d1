"""Draw the denoising of one sentence, step by step, as an SVG: the picture at the top of the README.

python benchmarks/picture.py --checkpoint out/demo/checkpoint --seed 5 --output docs/denoising.svg

Every line is the sentence at one time of the reverse process. A grey box is a [MASK], as wide as its later token. A
green token was revealed since the line above.
"""

import argparse
import html
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from checkpoint.folder import load_checkpoint  # noqa: E402
from checkpoint.model_parts import ModelParts  # noqa: E402
from checkpoint.sampling import SampleRequest, sample_rows  # noqa: E402
from diffusion.options import SampleArgs  # noqa: E402

CHARACTER, LINE, LEFT, GAP = 9.0, 30, 96, 9
"""Pixels: width of a character, height of a line, of the label's column, between tokens."""


def frames_of(model: ModelParts, seed: int, lines: int, num_steps: int) -> list[Tensor]:
    """Sample one sentence; return it at `lines` times, all masked first and clean last, each int64 [L]."""
    sampling = SampleArgs(num_steps=num_steps, temperature=0.4, top_p=0.95)
    seen: list[Tensor] = []
    (last,) = sample_rows(model, SampleRequest(seed=seed), sampling, lambda _, xt: seen.append(xt[0].clone()))
    special = (last == model.tokenizer.cls_token_id) | (last == model.tokenizer.sep_token_id)
    first = torch.where(special, last, model.tokenizer.mask_token_id)
    rows = [first, *seen]
    chosen = [rows[round(i * (len(rows) - 1) / (lines - 1))] for i in range(lines)]
    return [row[~special] for row in chosen]


def draw(frames: list[Tensor], model: ModelParts) -> str:
    """Return the SVG of some frames."""
    mask = model.tokenizer.mask_token_id
    names = [token.removeprefix("##") for token in model.tokenizer.convert_ids_to_tokens(frames[-1].tolist())]
    glued = [token.startswith("##") for token in model.tokenizer.convert_ids_to_tokens(frames[-1].tolist())]
    starts, x = [], float(LEFT)
    for name, is_glued in zip(names, glued, strict=True):
        x -= GAP * is_glued
        starts.append(x)
        x += CHARACTER * len(name) + GAP
    parts, before = [], torch.full_like(frames[0], mask)
    for line, row in enumerate(frames):
        y = LINE * line + 34
        label = f"{100 * int((row == mask).sum()) // len(row)} % masked"
        parts.append(f'<text class="label" x="10" y="{y}">{label}</text>')
        for i, token in enumerate(row.tolist()):
            width = CHARACTER * len(names[i])
            if token == mask:
                parts.append(f'<rect x="{starts[i]:.0f}" y="{y - 13}" width="{width:.0f}" height="16" rx="3"/>')
            else:
                kind = "new" if before[i] == mask else "old"
                text = html.escape(names[i])
                parts.append(f'<text class="{kind}" x="{starts[i]:.0f}" y="{y}" textLength="{width:.0f}">{text}</text>')
        before = row
    size = f'width="{x + 10:.0f}" height="{LINE * len(frames) + 24}"'
    style = (
        "text{font:15px ui-monospace,Menlo,Consolas,monospace}.label{font-size:11px;fill:#888}.old{fill:#556}"
        ".new{fill:#0a7d33;font-weight:bold}rect{fill:#c9ced6}"
    )
    view = f'viewBox="0 0 {x + 10:.0f} {LINE * len(frames) + 24}"'
    background = '<rect width="100%" height="100%" style="fill:#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view}><style>{style}</style>{background}'
    return head + "".join(parts) + "</svg>\n"


def main() -> None:
    """Sample and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="out/demo/checkpoint", help="checkpoint trained on text")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--lines", type=int, default=8, help="number of lines")
    parser.add_argument("--num_steps", type=int, default=256, help="number of reverse steps")
    parser.add_argument("--output", type=Path, default=Path("denoising.svg"), help=".svg file to write")
    args = parser.parse_args()
    model = load_checkpoint(args.checkpoint, torch.device("cpu"))
    frames = frames_of(model, args.seed, args.lines, args.num_steps)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(draw(frames, model), encoding="utf-8")
    print(f"{args.output}: {model.tokenizer.decode(frames[-1])}")


if __name__ == "__main__":
    main()
