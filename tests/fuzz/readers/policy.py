"""Sparsity policies, as files, then applied to the gates of a model and compared with a text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz.mutate import json_text

from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.texts import check_disjoint


def prepare(folder: Path) -> Callable[[random.Random], None]:
    made = SparsityPolicy(
        "teal", 0.4, np.full((2, len(SITES)), 0.5, np.float32), "model",
        {"text_sha256": "x", "tokens": 300, "paragraphs": ["0123456789ab"]},
        {(0, SITES[0]): np.linspace(0, 1, 12, dtype=np.float32), (1, SITES[1]): np.ones(8, np.float32)},
    )  # fmt: skip
    whole, path = json.loads(made.to_json()), folder / "policy.json"

    def feed(rng: random.Random) -> None:
        path.write_bytes(json_text(whole, rng))
        policy = SparsityPolicy.load(path)
        policy.check("model", 2)
        check_disjoint("some text\n\nof two paragraphs", policy.calibration)
        SparsityPolicy.from_json(policy.to_json())

    return feed
