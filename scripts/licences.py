"""Which licences the toolkit's dependencies have, from the metadata of what is installed: ``python scripts/licences.py``."""

from __future__ import annotations

import re
import sys
from importlib import metadata

EXTRAS = ("parquet", "postgres", "openvino", "mnn", "tensorboard")
NEED = re.compile(r"^([A-Za-z0-9._-]+)")
EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
LONGEST = 60  # characters: some packages put the whole text there


def needs(name: str, extras: tuple[str, ...] = ()) -> list[str]:
    """Names of what a distribution needs that is installed here; markers of other systems name nothing that is."""
    found = []
    for text in metadata.distribution(name).requires or []:
        extra, need = EXTRA.search(text), NEED.match(text)
        if need is not None and (extra is None or extra.group(1) in extras):
            found.append(re.sub(r"[-_.]+", "-", need.group(1)).lower())
    return found


def licence(name: str) -> str:
    """As its metadata say it: the expression, else the classifiers, else the first line of the field."""
    about = metadata.metadata(name)
    classifiers = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or [] if text.startswith("License ::")]
    given = about.get("License-Expression") or ", ".join(classifiers) or (about.get("License") or "not said").strip()
    return given.splitlines()[0][:LONGEST]


def main() -> int:
    """Print one row per distribution; exit code 1 where a licence is not said."""
    seen: dict[str, tuple[str, str]] = {}
    left = needs("hwnas", EXTRAS)
    while left:
        name = left.pop()
        if name in seen:
            continue
        try:
            seen[name] = (metadata.version(name), licence(name))
            left += needs(name)
        except metadata.PackageNotFoundError:
            continue  # another system's, or an extra that is not installed
    print("| package | version | licence |\n|---|---|---|")
    for name in sorted(seen):
        version, text = seen[name]
        print(f"| {name} | {version} | {text} |")
    unknown = [name for name, (_, text) in seen.items() if text == "not said"]
    print(f"\n{len(seen)} packages; licence not said by {', '.join(sorted(unknown)) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
