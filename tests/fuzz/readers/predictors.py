"""The safetensors file with a policy's predictors, read by way of the policy that names it and its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from fuzz.mutate import safetensors_bytes
from fuzz.target import Target, overwrite

from spqt_ti.model.predictors import NeuronPredictor
from spqt_ti.sparsity.policy import SparsityPolicy


def prepare(folder: Path) -> Target:
    rng = np.random.default_rng(0)
    fc1, fc2, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4), (6, 2), 6))
    predictors = {layer: NeuronPredictor(fc1, fc2, bias) for layer in (0, 2)}
    path, file = folder / "policy.json", folder / "policy.safetensors"
    SparsityPolicy("svd", 0.5, np.zeros((3, 4), np.float32), "m", predictors=predictors).save(path)
    policy, whole = path.read_bytes(), file.read_bytes()
    digest = hashlib.sha256(whole).hexdigest().encode()

    def read(raw: bytes) -> None:
        overwrite(file, raw)
        overwrite(path, policy.replace(digest, hashlib.sha256(raw).hexdigest().encode()))
        for predictor in SparsityPolicy.load(path).predictors.values():
            predictor.predict(np.ones(predictor.hidden, np.float32))

    return Target((whole,), safetensors_bytes, read)
