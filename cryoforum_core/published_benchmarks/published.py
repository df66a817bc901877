"""What was published, in numbers: Table 1 of CryoPoseNet (Nashed et al. 2021, arXiv 2107.02958), and what reproduces it."""

from dataclasses import dataclass

from ..particles.simulate import DATA

MODEL = DATA / "adenylate_kinase_4ake.pdb.gz"
"""Adenylate kinase 4AKE, both chains, in the frame of the deposited entry."""
EXTENT_ANGSTROM = 102.4
"""Width of the box: 128 px of 0.8 A."""
DEFOCUS_ANGSTROM = (4000.0, 12000.0)
NEAR_SYMMETRY = (0.9996538, 0.0045286, 0.0259203, 0.0)
"""Quaternion (x, y, z, w) of the 180-degree rotation that superposes chain A on chain B. The map agrees with its rotated
copy to 2.8 A (FSC 0.5), so at lower resolution the two poses of an image can hardly be distinguished."""
TEST_FRACTION = 0.1


@dataclass(frozen=True)
class PublishedSet:
    """One line of the table."""

    snr_db: float | None
    """10 log10 of the variances of signal and noise; None for no noise."""
    has_ctf: bool
    resolution: str
    """The published value in Angstrom (FSC 0.143 against the true map; 1.6 is the Nyquist limit), or "-" for none."""

    @property
    def snr(self) -> float:
        return float("inf") if self.snr_db is None else 10 ** (self.snr_db / 10)

    @property
    def label(self) -> str:
        noise = "no noise" if self.snr_db is None else f"{self.snr_db:g} dB".replace("-", "\N{MINUS SIGN}")
        return noise + (", CTF" if self.has_ctf else "")


CRYOPOSENET = {
    "A": PublishedSet(None, False, "1.6"), "B": PublishedSet(10, False, "1.6"), "C": PublishedSet(5, False, "1.6"),
    "D": PublishedSet(0, False, "1.6"), "E": PublishedSet(-5, False, "-"), "F": PublishedSet(-10, False, "< 2.5"),
    "G": PublishedSet(0, True, "1.6"),
}


@dataclass(frozen=True)
class Scale:
    """Size of the sets, and training time of the networks."""

    n_particles: int
    box_size_px: int
    minutes: float
    network_box_size_px: int
    """Of end-to-end training."""


SCALES = {"small": Scale(3000, 64, 20.0, 32), "full": Scale(10_000, 128, 60.0, 128)}
