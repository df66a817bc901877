"""Our own parts beside published libraries, on small cases with known answers, one thread, both in one run.

    pip install torch-fourier-slice torch-fourier-shell-correlation torch-fit-in-map starfile cryosparc-tools mapie crepes
    pip install setuptools pybind11 && pip install --no-build-isolation --no-binary torch-projectors torch-projectors
    OMP_NUM_THREADS=1 python benchmarks/library_comparison.py [--only slices insertion fsc alignment star cryosparc ...]

None of these libraries is a dependency; install them into an environment of their own. Prints Markdown tables.
Results: docs/decisions/0058-by-hand-or-library.md.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoforum_core.geometry.rotations import (
    angular_distance_deg,
    matrix_to_quaternion,
    quaternion_to_matrix,
    random_quaternions,
)
from cryoforum_core.imaging.fourier import frequency_grid, low_pass_volume
from cryoforum_core.imaging.map_alignment import align_to_reference
from cryoforum_core.imaging.projection import FourierVolume, Reconstructor, gridding_correction, slice_points
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.imaging.volume_frame import mirror_volume, move_volume
from cryoforum_core.particles.cryosparc import read_cryosparc
from cryoforum_core.particles.simulate import load_molecule
from cryoforum_core.particles.star import read_star, write_star
from cryoforum_core.uncertainty.error_model import conformal_quantile

BOX, PADDING, N_IMAGES, N_ROWS = 64, 2, 200, 100_000
SIGMA_PX = 1.5


def table(title: str, header: str, *rows: str) -> None:
    print(f"\n### {title}\n\n| {header} |\n|{'---|' * (header.count('|') + 1)}")
    print("\n".join(f"| {row} |" for row in rows), flush=True)


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of several CPU times, after one that is not counted: other programs do not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def gaussians() -> tuple[Tensor, Tensor, Tensor]:
    """Poses (N, 4), transforms (N, B, B // 2 + 1) of the exact projections of 60 Gaussians, and their map (B, B, B)."""
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    centre = centre / centre.norm(dim=1, keepdim=True) * 0.3 * BOX * torch.rand(60, 1, generator=generator)
    poses = random_quaternions(N_IMAGES, generator)
    ky, kx = frequency_grid(BOX)
    k = torch.stack(torch.broadcast_tensors(kx, ky), -1).double() / BOX
    place = centre @ quaternion_to_matrix(poses.double()).mT[..., :2]
    phase = torch.einsum("yxc,npc->nyxp", k, place)
    images = torch.polar(torch.exp(-2 * (math.pi * SIGMA_PX * k.norm(dim=-1)) ** 2)[None, ..., None], -2 * math.pi * phase)
    offset = torch.arange(BOX, dtype=torch.float64) - BOX // 2
    x, y, z = (torch.exp(-((offset - c[:, None]) / SIGMA_PX) ** 2 / 2) / math.sqrt(2 * math.pi) / SIGMA_PX for c in centre.T)
    return poses, images.sum(-1).to(torch.complex64), torch.einsum("pz,py,px->zyx", z, y, x).float()


def padded(volume: Tensor) -> Tensor:
    return torch.nn.functional.pad(volume / gridding_correction(BOX, PADDING), [BOX * (PADDING - 1) // 2] * 6)


def crop(volume: Tensor) -> Tensor:
    start = (volume.shape[-1] - BOX) // 2
    return volume[..., start:start + BOX, start:start + BOX, start:start + BOX]


def relative(found: Tensor, truth: Tensor) -> float:
    """Root mean square of the difference over that of the truth, within 0.9 of the Nyquist frequency for images."""
    if truth.is_complex():
        ky, kx = frequency_grid(BOX)
        inside = torch.hypot(ky, kx) < 0.45 * BOX
        found, truth = found[..., inside], truth[..., inside]
    return float((found - truth).abs().square().mean().sqrt() / truth.abs().square().mean().sqrt())


def slices() -> None:
    import torch_fourier_slice as slice_library
    import torch_projectors

    poses, truth, volume = gaussians()
    to_volume = quaternion_to_matrix(poses).mT.contiguous()
    ours, with_gradient = FourierVolume.from_real(volume, PADDING), FourierVolume.from_real(volume, PADDING, None, True)
    ky, kx = frequency_grid(BOX)
    k = torch.stack(torch.broadcast_tensors(kx, ky), -1)[torch.hypot(ky, kx) <= BOX / 2]
    points = slice_points(poses, k)

    centred = torch.fft.fftshift(torch.fft.rfftn(torch.fft.ifftshift(padded(volume))), dim=(0, 1))
    four = centred[None].repeat(4, 1, 1, 1)
    images = slice_library.project_3d_to_2d(volume, to_volume, PADDING)
    theirs = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
    corner = torch.fft.rfftn(torch.fft.ifftshift(padded(volume)))[None]

    def projector(rotations: Tensor) -> Tensor:
        return torch_projectors.project_3d_to_2d_forw(corner, rotations[None], None, (BOX, BOX), "linear", PADDING)[0]

    def projector_backward() -> None:
        rotations = to_volume.clone().requires_grad_()
        (projector(rotations) - truth).abs().square().sum().backward()

    finer = FourierVolume.from_real(volume, PADDING + 1)
    base, base_gradient = seconds(lambda: ours.project(poses)), seconds(lambda: with_gradient.sample_with_gradient(points))
    extract = seconds(lambda: slice_library.extract_central_slices_rfft_3d(centred, to_volume))
    extract_four = seconds(lambda: slice_library.extract_central_slices_rfft_3d_multichannel(four, to_volume))
    forward, backward = seconds(lambda: projector(to_volume)), seconds(projector_backward)
    table(f"Slices: {N_IMAGES} images of {BOX} px, padding {PADDING}",
          "| error | time, ours = 1 | with derivatives, ours = 1",
          f"ours | {relative(ours.project(poses), truth):.4f} | 1 ({1e3 * base:.0f} ms) | 1 ({1e3 * base_gradient:.0f} ms)",
          f"ours, padding {PADDING + 1} | {relative(finer.project(poses), truth):.4f} | "
          f"{seconds(lambda: finer.project(poses)) / base:.2f} | ",
          f"torch-fourier-slice | {relative(theirs, truth):.4f} | {extract / base:.1f} | "
          f"{extract_four / base_gradient:.1f} (slices of four maps)",
          f"torch-projectors | {relative(projector(to_volume), truth):.4f} | {forward / base:.2f} | "
          f"{backward / base_gradient:.2f} (gradient of one loss)")


def insertion() -> None:
    import torch_fourier_slice as slice_library
    import torch_projectors

    poses, _, volume = gaussians()
    poses = random_quaternions(1000, torch.Generator().manual_seed(2))
    images = FourierVolume.from_real(volume, 3).project(poses)
    to_volume, ones = quaternion_to_matrix(poses).mT.contiguous(), torch.ones(images.shape)
    real = torch.fft.fftshift(torch.fft.irfft2(images), dim=(-2, -1))

    # images in a wider box are sampled as finely as the padded grid
    wide = torch.fft.rfft2(torch.fft.ifftshift(torch.nn.functional.pad(real, [BOX // 2] * 4), dim=(-2, -1)))

    def ours() -> Tensor:
        reconstructor = Reconstructor(BOX, PADDING)
        reconstructor.insert(images, ones, poses)
        return reconstructor.volume()

    def ours_wide() -> Tensor:
        reconstructor = Reconstructor(PADDING * BOX, 1, PADDING * (BOX / 2 - 1))
        reconstructor.insert(wide, torch.ones(wide.shape), poses)
        return crop(reconstructor.volume())

    def projectors() -> Tensor:
        # the volume has the box of its images
        data, weight = torch_projectors.backproject_2d_to_3d_forw(
            wide[None], to_volume[None], torch.ones(wide.shape)[None], None, "linear", 1.0)
        quotient = data[0] / weight[0].clamp_min(1e-3 * float(weight.mean()))
        return crop(torch.fft.fftshift(torch.fft.irfftn(quotient))) / gridding_correction(BOX, PADDING)

    base = seconds(ours)
    found = {f"ours ({base:.2f} s)": ours, "ours, images in twice the box": ours_wide,
             "torch-fourier-slice": lambda: slice_library.backproject_2d_to_3d(real, to_volume, PADDING),
             "torch-projectors, images in twice the box": projectors}
    table(f"Insertion: {len(poses)} images of {BOX} px without noise, CTF 1", "| error of the map | time, ours = 1",
          *(f"{name} | {relative(low_passed(work()), low_passed(volume)):.4f} | {seconds(work) / base:.1f}"
            for name, work in found.items()))


def low_passed(volume: Tensor) -> Tensor:
    return low_pass_volume(volume, 0.4 * BOX)


def fsc() -> None:
    from torch_fourier_shell_correlation import fourier_shell_correlation as library

    generator = torch.Generator().manual_seed(3)
    _, _, volume = gaussians()
    first, second = (volume + 0.02 * torch.randn(volume.shape, generator=generator) for _ in range(2))
    a, b = (np.fft.fftn(v.double().numpy()) for v in (first, second))
    shells = np.rint(np.sqrt(sum(g ** 2 for g in np.meshgrid(*[np.fft.fftfreq(BOX, 1 / BOX)] * 3)))).astype(int).ravel()
    sums = [np.bincount(shells, values.ravel())[:BOX // 2 + 1] for values in ((a * b.conj()).real, abs(a)**2, abs(b)**2)]
    exact = torch.from_numpy(sums[0] / np.sqrt(sums[1] * sums[2]))
    base = seconds(lambda: fourier_shell_correlation(first, second))
    table(f"FSC of two maps of {BOX} px", "| largest difference from all voxels of rounded shells | time, ours = 1",
          f"ours | {float((fourier_shell_correlation(first, second) - exact).abs().max()):.1e} | 1 ({1e3 * base:.0f} ms)",
          f"torch-fourier-shell-correlation | {float((library(first, second) - exact).abs().max()):.1e} | "
          f"{seconds(lambda: library(first, second)) / base:.1f}")


def alignment() -> None:
    from torch_fit_in_map import apply_alignment, fit_map_in_map

    volume = load_molecule(None, 32, None).volume
    generator = torch.Generator().manual_seed(4)
    rows = []
    for number, snr in enumerate((math.inf, math.inf, 0.1)):
        rotation = random_quaternions(1, generator)[0]
        clean = move_volume(volume, rotation, 2 * torch.randn(3, generator=generator))
        noise = torch.randn(volume.shape, generator=generator) * volume.std() / math.sqrt(snr)
        reference = clean + noise
        start = time.process_time()
        # the mirrored map: only ours, which tries both hands, can succeed with it
        mobile = mirror_volume(volume) if number == 1 else volume
        found = align_to_reference(mobile, reference)
        ours = time.process_time() - start
        error = float(angular_distance_deg(found.rotation[None], rotation[None])[0])
        assert found.is_mirrored == (number == 1)
        start = time.process_time()
        theirs = fit_map_in_map(mobile, reference, verbose=False)
        spent = time.process_time() - start
        matrix = theirs.rotation_matrix.flip(0, 1)
        off = min(float(angular_distance_deg(matrix_to_quaternion(m)[None], rotation[None])[0]) for m in (matrix, matrix.T))
        same = float(torch.corrcoef(torch.stack([apply_alignment(mobile, theirs).flatten(), clean.flatten()]))[0, 1])
        case = ("none", "none, mirrored map", snr)[number]
        rows.append(f"{case} | {error:.2f} | {ours:.1f} s | "
                    f"{off:.2f} | {same:.3f} | {spent / ours:.1f}")
    table("Alignment of two maps of 32 px",
          "noise (SNR) | error of ours, both hands (degrees) | time | error of torch-fit-in-map, one hand | its correlation "
          "with the true map moved | time, ours = 1", *rows)


def star() -> None:
    import starfile

    generator = np.random.default_rng(5)
    names = ["rlnImageName", "rlnMicrographName", *(f"rlnNumber{number}" for number in range(18))]
    lines = [f"{row + 1:06d}@stack.mrcs mic.mrc " + " ".join(f"{v:.6f}" for v in values)
             for row, values in enumerate(generator.normal(size=(N_ROWS, 18)))]
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder, "in.star"), Path(folder, "out.star")
        header = "# version 30001\n\ndata_particles\n\nloop_\n"
        path.write_text(header + "".join(f"_{n} #{i}\n" for i, n in enumerate(names, 1)) + "\n".join(lines) + "\n")
        base, base_write = seconds(lambda: read_star(path), 1), seconds(lambda r=read_star(path): write_star(again, r), 1)
        theirs = seconds(lambda: starfile.read(path), 1)
        write = seconds(lambda r=starfile.read(path): starfile.write(r, again), 1)
        answers = []
        cases = (("1@a.mrcs nan 1.10\n2@a.mrcs 007 1e-9\n", ("30001", "nan", "1.10", "007", "1e-9")),
                 ("1@a#b.mrcs 1 2\n2@a.mrcs 1 2\n", ("1@a#b.mrcs",)), ("1@a.mrcs 1 2\n2@a.mrcs 1\n", ()))
        for number, (rows, wanted) in enumerate(cases):
            # a file each: after an error starfile keeps the lines that it has read
            path = Path(folder, f"{number}.star")
            path.write_text(header + "_rlnImageName #1\n_rlnOddColumn #2\n_rlnNumber #3\n" + rows)
            answers.append([kept(copy, path, again, wanted) for copy in (
                lambda source, target: write_star(target, read_star(source)),
                lambda source, target: starfile.write(starfile.read(source), target))])
    table(f"STAR file of {N_ROWS} rows and 20 columns",
          "| reading | writing | kept of version 30001, nan, 1.10, 007, 1e-9 | name with # | a row that is too short",
          f"ours | 1 ({base:.2f} s) | 1 ({base_write:.2f} s) | " + " | ".join(a[0] for a in answers),
          f"starfile | {theirs / base:.1f} | {write / base_write:.1f} | " + " | ".join(a[1] for a in answers))


def kept(copy: Callable[[Path, Path], object], source: Path, target: Path, wanted: tuple[str, ...]) -> str:
    """Which tokens are in the copied file, or what was raised: that is part of the answer."""
    try:
        copy(source, target)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ").replace(str(source), "FILE").strip()
    return ", ".join(token for token in wanted if token in target.read_text().split()) or ("none" if wanted else "accepted")


def cryosparc() -> None:
    from cryosparc.dataset import Dataset

    generator = np.random.default_rng(6)
    fields = [("uid", "u8"), ("blob/path", "S64"), ("blob/idx", "u4"), ("blob/shape", "u4", 2), ("blob/psize_A", "f4"),
              ("blob/sign", "f4"), ("ctf/exp_group_id", "u4"), ("ctf/accel_kv", "f4"), ("ctf/cs_mm", "f4"),
              ("ctf/amp_contrast", "f4"), ("ctf/df1_A", "f4"), ("ctf/df2_A", "f4"), ("ctf/df_angle_rad", "f4"),
              ("ctf/phase_shift_rad", "f4"), ("alignments3D/pose", "f4", 3), ("alignments3D/shift", "f4", 2),
              ("alignments3D/psize_A", "f4")]
    records = np.zeros(N_ROWS, fields)
    records["uid"], records["blob/path"], records["blob/shape"] = np.arange(N_ROWS), b">J1/a.mrc", 64
    records["blob/psize_A"] = records["alignments3D/psize_A"] = 1.0
    records["alignments3D/pose"] = generator.normal(size=(N_ROWS, 3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "particles.cs")
        with path.open("wb") as file:
            np.save(file, records)
        base = seconds(lambda: read_cryosparc(path), 1)
        theirs = seconds(lambda: Dataset.load(path), 1)
        columns = list(Dataset.load(path).keys())
    table(f".cs file of {N_ROWS} particles", "| time | result",
          f"ours | 1 ({base:.2f} s) | RELION table, Euler angles, optics groups",
          f"cryosparc-tools | {theirs / base:.2f} | {len(columns)} raw fields")


def conformal() -> None:
    from crepes.base import ConformalRegressor
    from mapie.regression import SplitConformalRegressor
    from sklearn.base import BaseEstimator, RegressorMixin

    class Zero(RegressorMixin, BaseEstimator):
        def fit(self, x, y):
            self.is_fitted_ = True
            return self

        def predict(self, x):
            return np.zeros(len(x))

    generator = np.random.default_rng(7)
    n, n_new, coverage = 1500, 20_000, 0.9
    chance = generator.beta(0.3, 2.0, n + n_new)
    sigma = np.exp(generator.normal(0, 0.4, n + n_new))
    is_misassigned = generator.random(n + n_new) < chance
    error = np.where(is_misassigned, generator.uniform(0, 180, n + n_new), sigma * generator.rayleigh(1.2, n + n_new))
    grid = np.concatenate([np.linspace(0, 8, 801), np.linspace(8.5, 180, 344)])

    def distribution(part: slice) -> np.ndarray:
        """Each particle's own distribution on the grid, its spread stated too small."""
        local = 1 - np.exp(-(grid / sigma[part, None]) ** 2 / 2)
        return (1 - chance[part, None]) * local + chance[part, None] * grid / 180

    level = np.array([np.interp(error[i], grid, distribution(slice(i, i + 1))[0]) for i in range(n)])
    ours = conformal_quantile(torch.from_numpy(level), coverage)
    new = slice(n, None)
    own = np.array([grid[min(np.searchsorted(d, ours), len(grid) - 1)] for d in distribution(new)])
    regressor = ConformalRegressor()
    regressor.fit(residuals=level)
    same = regressor.predict_int(np.zeros(1), confidence=coverage)[0, 1]
    bounds = {"ours, each particle's distribution": own}
    expected = (1 - chance) * sigma * math.sqrt(math.pi / 2) + chance * 90
    for name, scale in (("spread", sigma), ("expected error", expected)):
        regressor.fit(residuals=error[:n], sigmas=scale[:n])
        bounds[f"crepes, normalised by the {name}"] = regressor.predict_int(
            np.zeros(n_new), sigmas=scale[n:], confidence=coverage)[:, 1]
    mapie = SplitConformalRegressor(Zero().fit(None, None), confidence_level=coverage, prefit=True)
    mapie.conformalize(np.zeros((n, 1)), error[:n])
    bounds["mapie, absolute residuals"] = mapie.predict_interval(np.zeros((n_new, 1)))[1][:, 1, 0]
    safe, held = chance[new] < 0.05, {name: error[new] <= bound for name, bound in bounds.items()}
    table(f"Bounds, nominal coverage {coverage:.0%}, {n} calibration particles; same quantile: {ours:.6f}, {same:.6f}",
          "| coverage | median bound (degrees) | coverage where misassignment is below 5 % | above",
          *(f"{name} | {held[name].mean():.1%} | {np.median(bounds[name]):.1f} | {held[name][safe].mean():.1%} | "
            f"{held[name][~safe].mean():.1%}" for name in bounds))


PARTS = {part.__name__: part for part in (slices, insertion, fsc, alignment, star, cryosparc, conformal)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    torch.set_num_threads(1)
    for name in parser.parse_args().only:
        PARTS[name]()
