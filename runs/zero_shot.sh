#!/usr/bin/env bash
# The zero-shot table of MDLM's paper: perplexity per token on texts that the model was not trained on. Each text is
# detokenised, and cut into blocks of the checkpoint's length (row format wrapped).
#
#   bash runs/zero_shot.sh CHECKPOINT FOLDER [FLAGS of compute_elbo.py]
#
# FOLDER holds any of ptb, wikitext, lm1b, lambada, ag_news, pubmed, arxiv, as .txt (a text per line), .jsonl
# ({"text": ...}) or .parquet. The table has a row for each text that is present.
set -euo pipefail
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/setup.sh"
begin "$@"
[ $# -ge 2 ] || refuse "CHECKPOINT and FOLDER are needed"
must_exist "$1" folder
must_exist "$2" folder
checkpoint=$(located "$1") folder=$(located "$2")
shift 2
only_flags "$@"
resolve_paths "$@"
set -- ${arguments[@]+"${arguments[@]}"}
ensure_environment requirements.txt
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
while read -r name rules <&3; do # since a program may read stdin
    for file in "$folder/$name".{txt,jsonl,parquet}; do
        [ -e "$file" ] && [ ! -e "$results/$name.json" ] || continue
        if python compute_elbo.py --checkpoint "$checkpoint" --data "$file" --row_format wrapped --detokenizer "$rules" \
            --json true "$@" >"$results/part"; then
            mv "$results/part" "$results/$name.json"
        else
            echo "warning: $file is left out" >&2
        fi
    done
done 3<<'CORPORA'
ptb ptb
wikitext wikitext
lm1b lm1b
lambada lambada
ag_news none
pubmed scientific_papers
arxiv scientific_papers
CORPORA
python - "$results" "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

from utils.figures import number

order = ["ptb", "wikitext", "lm1b", "lambada", "ag_news", "pubmed", "arxiv"]
found = {name: json.loads(file.read_text()) for name in order if (file := Path(sys.argv[1]) / f"{name}.json").exists()}
if not found:
    sys.exit(f"error: {sys.argv[2]} holds none of {', '.join(order)} (.txt, .jsonl or .parquet)")
print("| text | PPL per token | nats per block | blocks | row format |\n|---|---|---|---|---|")
for name, r in found.items():
    error = "" if r["standard_error_nats"] is None else f" ± {r['standard_error_nats']:.1f}"
    print(
        f"| {name} | {number(r['ppl_token'], 2)} | {r['nats_per_sequence']:.1f}{error} "
        f"| {r['num_sequences']:,} | {r['protocol']} |"
    )
PYTHON
