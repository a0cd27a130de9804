"""Chat templates that reach for Python's internals, run for ever or write without end.

Other programs: llama-cpp-python rendered templates outside a sandbox, so that one ran any code (CVE-2024-34359).
jinja2's sandbox could be left by `|attr` before 3.1.6 (CVE-2025-27516), and does not bound time or memory.
"""

from __future__ import annotations

from pathlib import Path

from tiny_models import random_weights, tiny_config, write_huggingface

TEMPLATES = {
    "code": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr": "{{ ('%s' | attr('format'))(messages) }}{{ messages | attr('__class__') | attr('__mro__') }}{{ 1 / 0 }}",
    "time": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{{ 'a' * 10**10 }}",
}


def make(folder: Path) -> list[Path]:
    """A directory for each template."""
    weights, paths = random_weights(tiny_config()), []
    for name, template in TEMPLATES.items():
        paths.append(write_huggingface(folder / name, tiny_config(), weights, chat_template=template))
    return paths
