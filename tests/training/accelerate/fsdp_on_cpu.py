"""`keel-train` in processes that shard their weights on CPUs, for the test beside this file.

accelerate turns FSDP on for GPUs alone: it asks what kind of processes there are, and leaves the plugin out
for CPUs. torch's own FSDP 2 runs there, over gloo, so here the answer is changed, and nothing else.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils.dataclasses import DistributedType

from training.cli import main

_init: Any = AcceleratorState.__init__


def with_fsdp(self: Any, *arguments: Any, fsdp_plugin: Any = None, **named: Any) -> None:
    _init(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
    plugin = fsdp_plugin or getattr(self, "fsdp_plugin", None)
    if self.distributed_type is DistributedType.MULTI_CPU and plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = with_fsdp  # type: ignore[method-assign]
    sys.exit(main())
