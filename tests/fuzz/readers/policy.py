"""Sparsity policies, as files, then compared with a text and written again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fuzz.mutate import json_bytes
from fuzz.target import Target, overwrite

from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.texts import check_disjoint


def prepare(folder: Path) -> Target:
    made = SparsityPolicy(
        "teal", 0.4, np.full((2, len(SITES)), 0.5, np.float32), "model",
        {"text_sha256": "x", "tokens": 300, "paragraphs": ["0123456789ab"]},
        {(0, SITES[0]): np.linspace(0, 1, 12, dtype=np.float32), (1, SITES[1]): np.ones(8, np.float32)},
    )  # fmt: skip
    path = folder / "policy.json"

    def read(raw: bytes) -> None:
        policy = SparsityPolicy.load(overwrite(path, raw))
        policy.check("model", 2)
        check_disjoint("some text\n\nof two paragraphs", policy.calibration)
        SparsityPolicy.from_json(policy.to_json())

    return Target((made.to_json().encode(),), json_bytes, read)
