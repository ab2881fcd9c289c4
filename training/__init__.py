"""Keel's training side: demonstrations and preferences in, verified checkpoints out.

`service` never imports this package, nor this package `service`; they meet in the checkpoint manifest
(`policies.manifest`).
"""

import logging

# bitsandbytes, which peft imports, asks on a CPU for a kernel package that nothing here needs, as if
# something had failed; it does so when it is imported, so this comes before.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
