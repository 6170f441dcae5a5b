"""What only the environment itself can tell, printed as JSON: run by ``.venv/bin/python``."""

import importlib
import json
import sys
from importlib.metadata import PackageNotFoundError, requires, version


def requirements(package: str, *skipped: str) -> list[str]:
    """Return what a package needs here, its markers evaluated, less the skipped names."""
    packaging = importlib.import_module("packaging.requirements")
    wanted = [packaging.Requirement(line) for line in requires(package) or []]
    found: list[str] = []
    for item in wanted:
        if item.name.lower() in skipped or (
            item.marker and not item.marker.evaluate({"extra": ""})
        ):
            continue
        extras = f"[{','.join(sorted(item.extras))}]" if item.extras else ""
        found.append(f"{item.name}{extras}{item.specifier}")
    return found


def versions(*names: str) -> dict[str, str | None]:
    """Return the versions of packages; torch and the platform must load."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    importlib.import_module("maas")
    found["torch"] = str(importlib.import_module("torch").__version__)
    return found


if __name__ == "__main__":
    ask = {"requirements": requirements, "versions": versions}[sys.argv[1]]
    sys.stdout.write(json.dumps(ask(*sys.argv[2:])) + "\n")
