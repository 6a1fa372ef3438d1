#!/usr/bin/env bash
# text8 in characters, as in D3PM: blocks of 256, the first 90 M characters for training, 5 M for validation, 5 M for the
# test. MDLM's network and settings: 512 blocks per step, 1 M steps.
#
#   bash runs/text8.sh TEXT8 [FLAGS of main.py]       (TEXT8: the file of 100,000,000 characters; a GPU)
#
# bits/token of the report are bits per character. The model goes to out/text8, or to --output_dir.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/recipe.sh"
begin "$@"
[ $# -ge 1 ] || refuse "TEXT8 is needed"
must_exist "$1" file
text=$(realpath -- "$(located "$1")")
shift
only_flags "$@"
resolve_paths "$@"
set -- ${arguments[@]+"${arguments[@]}"}
ensure_environment requirements.txt
out=$(flag_value "$output_flag" out/text8 "$@")
data=out/cache/text8-$(cksum <"$text" | tr ' ' -)
mkdir -p out/cache
python - "$text" "$data" <<'PYTHON'
import sys
from pathlib import Path

from utils.files import folder_written_whole

folder = Path(sys.argv[2])
try:
    text = Path(sys.argv[1]).read_text(encoding="ascii")
except UnicodeDecodeError as error:
    print(f"error: {sys.argv[1]}: byte {error.start + 1} is not a letter a to z or a space; give the file text8 itself", file=sys.stderr)
    sys.exit(2)
if not folder.exists():
    bounds = {"train": (0, 0.9), "valid": (0.9, 0.95), "test": (0.95, 1)}
    with folder_written_whole(folder) as temporary:
        for name, (begin, end) in bounds.items():
            words = text[int(begin * len(text)) : int(end * len(text))].split()
            lines = (" ".join(words[i : i + 2000]) for i in range(0, len(words), 2000))  # joined again when they are read
            (temporary / f"{name}.txt").write_text("\n".join(lines) + "\n")
PYTHON
count=$(gpus)
fit_to_memory "$count" 512
launch "$count" --process mdlm --train_data "$data" --output_dir "$out" --tokenizer text8 --row_format running \
    --max_length 258 --model_name_or_path ddit-small --from_scratch true "${fitted[@]}" \
    --optimizer adamw --learning_rate 3e-4 --lr_schedule constant --warmup_steps 2500 --weight_decay 0 \
    --ema_decay 0.9999 --max_steps 1000000 --eval_steps 10000 --logging_steps 1000 "$@"
python compute_elbo.py --checkpoint "$out/checkpoint-last" --data "$data/test.txt"
python predict.py --checkpoint "$out/checkpoint-last" --num_samples 3
