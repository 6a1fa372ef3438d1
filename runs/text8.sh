#!/usr/bin/env bash
# text8 in characters, as D3PM and its successors count it: 256 of them a block, the first 90 M to train on, then 5 M and
# 5 M to choose by and to test on; MDLM's network and settings, 512 blocks a step, 1 M steps.
#   bash runs/text8.sh TEXT8 [FLAGS of main.py]       (TEXT8: the file of 100,000,000 characters; a GPU)
# bits/token of the score are bits per character.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f "${1-}" ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
text=$(realpath "$1")
shift
. ./setup.sh
. ./recipe.sh
ensure_environment requirements.txt
out=$(given --output_dir out/text8 "$@")
data=out/cache/text8-$(cksum <"$text" | tr ' ' -)
mkdir -p out/cache
python - "$text" "$data" <<'PYTHON'
import sys
from pathlib import Path

from files import folder_written_whole

text, folder = Path(sys.argv[1]).read_text(encoding="ascii"), Path(sys.argv[2])
if not folder.exists():
    bounds = {"train": (0, 0.9), "valid": (0.9, 0.95), "test": (0.95, 1)}
    with folder_written_whole(folder) as temporary:
        for name, (begin, end) in bounds.items():
            words = text[int(begin * len(text)) : int(end * len(text))].split()
            lines = (" ".join(words[i : i + 2000]) for i in range(0, len(words), 2000))  # put together again as they were
            (temporary / f"{name}.txt").write_text("\n".join(lines) + "\n")
PYTHON
count=$(gpus)
size=(--batch_size 512)
if [ "$count" -gt 0 ]; then read -r -a size <<<"$(fit_to_memory "$count" 512)"; fi
launch "$count" --process mdlm --train_data "$data" --output_dir "$out" --tokenizer text8 --protocol running \
    --max_length 258 --model_name_or_path ddit-small --from_scratch true "${size[@]}" \
    --optimizer adamw --learning_rate 3e-4 --lr_schedule constant --warmup_steps 2500 --weight_decay 0 \
    --ema_decay 0.9999 --max_steps 1000000 --eval_steps 10000 --logging_steps 1000 "$@"
python compute_elbo.py --checkpoint "$out/checkpoint-last" --data "$data/test.txt"
python predict.py --checkpoint "$out/checkpoint-last" --num_samples 3
