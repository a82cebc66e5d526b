#!/usr/bin/env bash
# A row of another program beside the sweep `regions`, from the data to the import. From the root of a checkout:
#   examples/external/run.sh
# RATIOS, SEEDS and TRAIN_GROUPS are those of the sweep (results/regions, or python -m harness.sweep sweeps/regions.yaml).
set -euo pipefail
here=$(dirname "$0")
python=${PYTHON:-.venv/bin/python}
data=data/emoji_precomp
out=data/two_tower
groups=${TRAIN_GROUPS:-350}
mkdir -p "$out"

[ -d "$data" ] || "$python" -m harness.data export emoji --format scan --out "$data"

for ratio in ${RATIOS:-0.2 0.4}; do
  for seed in ${SEEDS:-0 1 2 3 4}; do
    index=$out/noise_${ratio}_$seed.npy
    [ -f "$index" ] || "$python" -m harness.data noise write "$data" --options "{train_groups: $groups}" \
      --form caption --ratio "$ratio" --seed "$seed" --out "$index"
    "$python" "$here/two_tower.py" "$data" --train-groups "$groups" --seed "$seed" \
      --noise-index "$index" --out "$out/${ratio}_$seed"
  done
done

commit=${COMMIT:-$(git -C "$here" rev-parse HEAD)}
sed "s/COMMIT/$commit/" "$here/two_tower.yaml" > "$out/row.yaml"
"$python" -m harness.results import "$out/row.yaml"
