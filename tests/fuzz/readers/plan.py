"""Plans of static pruning, as files, then compared with a source and written into a container's record."""

from __future__ import annotations

import json
from pathlib import Path

from fuzz.mutate import json_bytes
from fuzz.target import Target, overwrite

from spqt_ti.convert.plan import PruningPlan

GROUPS = [{"first": 0, "layers": 2, "rate": 0.05}, {"first": 2, "layers": 1, "rate": 0.125}]
WHOLE = {
    "spqt_plan": 1, "model": {"sha256": "ab" * 32}, "mode": "corrected", "alpha": 0.0, "beta": 0.15,
    "calibration": {"text_sha256": "x", "paragraphs": ["0123456789ab"], "tokens": 300}, "groups": GROUPS,
}  # fmt: skip


def prepare(folder: Path) -> Target:
    path = folder / "plan.json"

    def read(raw: bytes) -> None:
        plan = PruningPlan.load(overwrite(path, raw))
        plan.check("ab" * 32, 3)
        assert all(0 <= rate < 1 for rate in plan.rates)
        json.dumps(plan.records())

    by_hand = {"spqt_plan": 1, "rates": [0, 0.1, 0.5]}
    return Target((json.dumps(WHOLE).encode(), json.dumps(by_hand).encode()), json_bytes, read)
