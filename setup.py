"""The engine's distribution, cryoforum-core. The Scipion plugin is a second one, in scipion-em-cryoforum/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "cryoforum_core/__init__.py").read_text()).group(1)

setup(
    name="cryoforum-core",
    version=VERSION,
    description="Orientations of cryo-EM particles with calibrated errors, and removal of junk in 3D",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="GPL-3.0-or-later",
    python_requires=">=3.11",
    packages=find_packages(include=["cryoforum_core", "cryoforum_core.*"]),
    package_data={"cryoforum_core": ["data/*", "report/*.j2"]},
    install_requires=[
        "torch>=2.4",
        "numpy>=2.0",
        "roma>=1.8",
        "torch-ctf>=0.6,<0.7",
        "mrcfile>=1.5",
        "pydantic>=2.7",
        "tyro>=0.9",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "tqdm>=4.66",
        "safetensors>=0.4",
        "gemmi>=0.6.5",
        "jaxtyping>=0.3.3",
    ],
    extras_require={"test": ["pytest>=8", "scipy>=1.11", "starfile>=0.5.10", "pyflakes>=3.2", "beartype>=0.20"]},
    entry_points={"console_scripts": ["cryoforum = cryoforum_core.cli:main"]},
)
