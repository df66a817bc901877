"""The options of ``simulate --like session``: how images of a microscope session differ from each other.

The defaults follow spectra measured on micrographs of beta-galactosidase (``docs/decisions/0061-like-session.md``).
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from . import catalogue

DEFAULTS_LIKE = {
    "clean": {"snr": 0.1, "ctf": "box", "junk_fraction": 0.0, "junk_kinds": catalogue.JUNK_KINDS,
              "preferred_view_fraction": 0.0},
    "session": {"ctf": "padded", "junk_fraction": 0.1, "junk_kinds": catalogue.SESSION_JUNK_KINDS,
                "preferred_view_fraction": 0.5},
}
"""Defaults of simulate that depend on ``--like``; a session without SNR has that of real micrographs."""


class SessionConfig(BaseModel):
    """What differs between micrographs, and what is in the images beside the particle. 0 switches an ingredient off."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    micrographs: Annotated[int, Field(gt=0)] = 40
    """Number of micrographs. Each has a noise level, noise spectrum, B factor, defocus and astigmatism of its own."""
    voltages_kv: tuple[float, ...] = (300.0, 200.0)
    """Voltage of each optics group; micrographs take the groups in turn."""
    noise_spread: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Standard deviation of the logarithm of the micrographs' noise levels."""
    noise_colour: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Excess of the noise at low resolution, relative to that of real micrographs (2.3 times the power at 250 A, 1.4 times
    at 20 to 60 A); 0: white. In each micrograph between half of it and one and a half times it."""
    b_factor_max: Annotated[float, Field(ge=0, le=1000)] = 60.0
    """Largest B factor of a micrograph (A^2); they are spread evenly from 0."""
    defocus_spread_angstrom: Annotated[float, Field(ge=0, le=5000)] = 150.0
    """Standard deviation of the particles' defocus within a micrograph."""
    contrast_spread: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    """Standard deviation of the particles' contrast, relative to its mean."""
    gradient: Annotated[float, Field(ge=0, le=20)] = 0.2
    """Background gradient: standard deviation of its change across the box along x and along y, in standard deviations of
    the clean images."""
    neighbours: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Fraction of the images with a neighbour that reaches in at the rim of the box."""
    minor_state: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Fraction of the particles in a minor state, which lacks a domain (rlnClassNumber 2 in truth.star)."""
    domain: Annotated[float, Field(gt=0, le=0.5)] = 0.12
    """Part of the molecule that the minor state lacks: its end along a random direction."""
    ice_density: Annotated[float, Field(ge=0, lt=1)] = 0.65
    """Density of the ice relative to the molecule's, which lowers the contrast at low resolution. For atomic models only: a
    map from images has this contrast already."""

    @field_validator("voltages_kv")
    @classmethod
    def _check_voltages(cls, voltages_kv: tuple[float, ...]) -> tuple[float, ...]:
        if not voltages_kv or not all(50 <= voltage <= 1500 for voltage in voltages_kv):
            raise ValueError("must be one or more voltages from 50 to 1500 kV")
        return voltages_kv
