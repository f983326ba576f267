"""Real checkpoints for the tests marked `model`: a folder that `make test` does not need."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("KVCHAT_MODELS") or ROOT / "models")
