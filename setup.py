"""Packaging, read from settings.ini: the one place for name, version and dependencies."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


def listed(key: str) -> list[str]:
    "The lines of a multi-line setting."
    return cfg.get(key, "").split()


class WithNotebooks(build_py):
    """Wheels also carry the notebooks: `lungseg report` renders the site from an installed package too."""

    def run(self) -> None:
        super().run()
        project = Path(self.build_lib) / "lungseg" / "_project"
        for source in [ROOT / "settings.ini", ROOT / "_quarto.yml", *sorted((ROOT / "nbs").rglob("*"))]:
            relative = source.relative_to(ROOT)
            if source.is_file() and not any(part.startswith((".", "_")) for part in relative.parts[:-1]):
                (project / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, project / relative)


extras = {name: listed(f"{name}_requirements") for name in ("dicom", "fetch", "hpo", "log", "pdf", "report")}
extras["dev"] = sum(extras.values(), listed("dev_requirements"))
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=["lungseg", "lungseg.*"]),
    package_data={"lungseg": ["static/*", "recipes/*", "tables/*"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=listed("requirements"),
    extras_require=extras,
    cmdclass={"build_py": WithNotebooks},
    entry_points={
        "console_scripts": ["lungseg=lungseg.cli:main"],
        "nbdev": ["lungseg=lungseg._modidx:d"],
    },
    zip_safe=False,
)
