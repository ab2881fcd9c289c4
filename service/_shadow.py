"""Refuse to run when another distribution's package stands where Keel's should.

`guardrails` is also the import name of unrelated distributions on the package index. Installed into the
same environment, or lying in the folder a program is started from, one of them could answer Keel's imports.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

OURS = ("guardrails", "policies")


class ForeignPackageError(ImportError):
    """A package of Keel's is hidden by one of the same name that is not Keel's."""


def refuse_foreign_packages(names: tuple[str, ...] = OURS) -> None:
    """Check that Keel's packages come from where this one does; looks only, imports none of them.

    Call it before anything of theirs is imported. Raises `ForeignPackageError` with what to do.
    """
    home = Path(__file__).resolve().parent.parent
    for name in names:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found == home / name / "__init__.py":
            continue
        raise ForeignPackageError(
            f"the package {name!r} that Python finds is {found or 'missing'}, not Keel's own, which belongs "
            f"in {home / name}. Another distribution may be installed in this environment ('guardrails-ai' "
            "and others use the same name): run Keel in an environment of its own ('make serve' makes one), "
            f"and not from a folder that holds a {name!r} folder of its own."
        )
