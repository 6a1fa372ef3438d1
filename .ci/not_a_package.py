"""What pyproject.toml names as the build backend, so that `pip install .` says in one line what to do instead."""

import sys

sys.exit("DiffusionBERT is run from its folder, it is not a package: bash run.sh demo (it installs what it needs)")
