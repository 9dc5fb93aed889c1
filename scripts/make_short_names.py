"""Make lungseg/tables/short_names.txt: names of two to four letters, which descriptions may not keep.

    python scripts/make_short_names.py [FOLDER]

- `names` 0.3.0 (MIT) carries the surnames and given names of the US census of 1990, by frequency.
- `Faker` 40.54.0 (MIT) carries names of some seventy countries.

Both are unpacked from FOLDER, or freshly downloaded by pip; nothing of them is imported.
"""

import ast
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from lungseg.identity import folded

OUT = Path(__file__).resolve().parents[1] / "lungseg" / "tables" / "short_names.txt"
ALSO = {"guza", "rusu"}  # common, and in neither
SURNAMES = 40_000  # the commonest; rarer ones are mostly abbreviations as well

HEAD = """# Names of two to four letters, without accents: 40,000 surnames and all given names of the US
# census of 1990, and those of some seventy countries. Made by scripts/make_short_names.py.
"""


def fetch(folder: Path, requirement: str) -> None:
    "Download one package, unless it is there."
    name = requirement.partition("=")[0].lower()
    if not any(p.name.lower().startswith(f"{name}-") for p in folder.iterdir()):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), requirement]
        subprocess.run(pip, check=True)


def census(archive: Path) -> set[str]:
    "Names of the census, one a line, the commonest first."
    found = set()
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if "/dist." in member.name and member.isfile():
                lines = tar.extractfile(member).read().decode("ascii").splitlines()
                found.update(line.split()[0] for line in lines[:SURNAMES])
    return found


def faker(wheel: Path) -> set[str]:
    "Every text in the lists of names."
    found = set()
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            if re.fullmatch(r"faker/providers/person/\w+/__init__\.py", name):
                tree = ast.parse(z.read(name))
                texts = (
                    n.value
                    for n in ast.walk(tree)
                    if isinstance(n, ast.Constant) and isinstance(n.value, str)
                )
                found.update(word for text in texts if "{" not in text for word in text.split())
    return found


def main() -> None:
    with TemporaryDirectory() as d:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else d)
        fetch(folder, "names==0.3.0")
        fetch(folder, "Faker==40.54.0")
        found = (
            ALSO | census(next(folder.glob("names-*.tar.gz"))) | faker(next(folder.glob("[fF]aker-*.whl")))
        )
    short = {form for name in found for form in folded(name) if re.fullmatch("[a-z]{2,4}", form)}
    text = textwrap.fill(" ".join(sorted(short)), 110)
    OUT.write_text(f"{HEAD}{text}\n", encoding="utf-8")
    print(f"{OUT.name}: {len(short)} names")


if __name__ == "__main__":
    main()
