"""The `keel` console script."""

from __future__ import annotations

import sys

from service._shadow import ForeignPackageError, refuse_foreign_packages


def main() -> None:
    """Run the command line, once it is sure that the packages behind it are Keel's own."""
    try:
        refuse_foreign_packages()
    except ForeignPackageError as error:
        print(f"keel: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    from service.commands import app

    app()


if __name__ == "__main__":
    main()
