"""Package metadata comes from settings.ini, the single source; see also pyproject.toml for the tools' settings.

The wheel also brings what a first hour needs: recipes, their parameters and the embedded corpus, as
`wedefense_nb/assets/`. `wedefense_nb.files.locate` looks there last.
"""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
ASSETS = (
    "nbs/recipes/*.ipynb",
    "params/**/*.yaml",
    "params/*.smk",
    "data_samples/**/*.csv",
    "data_samples/**/*.flac",
    "data_samples/*.safetensors",
    "data_samples/*.md",
)


class BuildWithAssets(build_py):
    """Copy the assets into the package of a wheel; an editable install finds them beside itself."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for pattern in ASSETS:
                for source in sorted(here.glob(pattern)):
                    target = Path(self.build_lib, cfg["lib_name"], "assets", source.relative_to(here))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)


def lines(key: str) -> list[str]:
    return cfg.get(key, "").split("\n")[1:]


extras = {k.removesuffix("_requirements"): lines(k) for k in cfg if k.endswith("_requirements")}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license=cfg["license"],
    keywords=cfg["keywords"],
    project_urls=dict(line.split(" ", 1) for line in lines("project_urls")),
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_name"], f"{cfg['lib_name']}.*"]),
    package_data={cfg["lib_name"]: ["py.typed"]},
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split("\n"),
        "nbdev": [f"{cfg['lib_name']} = {cfg['lib_name']}._modidx:d"],
    },
    cmdclass={"build_py": BuildWithAssets},
    zip_safe=False,
)
