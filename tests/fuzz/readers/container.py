"""Quantised directories: the manifest, config, index and headers of a small container."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from fuzz.mutate import json_text, raw_bytes
from tiny_models import random_weights, tiny_config, write_huggingface

from spqt_ti.container import Container
from spqt_ti.convert.quantize import quantize


def prepare(folder: Path) -> Callable[[random.Random], None]:
    config = tiny_config()
    source = write_huggingface(folder / "source", config, random_weights(config))
    directory = quantize(source, folder / "whole", progress=False).path
    names = sorted(path.name for path in directory.iterdir())
    whole = {name: (directory / name).read_bytes() for name in names}
    changed: list[str] = []
    shutil.copytree(directory, folder / "m")

    def feed(rng: random.Random) -> None:
        for name in changed:
            (folder / "m" / name).write_bytes(whole[name])
        changed[:] = [rng.choice(("spqt.json", "spqt.json", *names))]
        raw = whole[changed[0]]
        if changed[0].endswith(".json") and rng.random() < 0.7:
            content = json_text(json.loads(raw), rng)
        else:
            content = raw_bytes(raw, rng, 4096)
        (folder / "m" / changed[0]).write_bytes(content)
        opened = Container.open(folder / "m", verify=rng.random() < 0.5)
        opened.read(rng.choice(opened.names()))

    return feed
