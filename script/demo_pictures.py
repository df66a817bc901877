"""The figures of the demo: errors against the true poses, and the maps side by side.

Run by script/demo in the engine's environment, after demo_workflow.py: ``demo_pictures.py OUT``.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend comes first
import mrcfile  # noqa: E402
import numpy as np  # noqa: E402

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#8a8f98"


def evaluate(out: Path, name: str, demo: dict) -> dict:
    """``cryoforum evaluate`` of all poses and of one RELION map, aligned to the true map; returns its summary."""
    run = out / f"evaluation_{name}"
    truth = out / "simulated"
    subprocess.run([sys.executable, "-m", "cryoforum_core", "evaluate", "--out", run,
                    "--particles", Path(demo["ab_initio"]) / "particles.star", "--truth", truth / "truth.star",
                    "--map", demo["maps"][name], "--truth-map", truth / "map.mrc", "--align-frame", "--allow-mirror",
                    "--device", "cpu"],
                   check=True, capture_output=True, text=True)
    return json.loads((run / "summary.json").read_text())


def read_errors(out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Particle ids (n,), errors in degrees (n,), and which are junk (n,)."""
    with open(out / "evaluation_all/errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return (np.array([int(row["particle"]) for row in rows]), np.array([float(row["error_deg"]) for row in rows]),
            np.array([row["is_junk"] == "1" for row in rows]))


def central_slice(path) -> np.ndarray:
    with mrcfile.open(path, permissive=True) as mrc:
        return mrc.data[mrc.data.shape[0] // 2]


def draw_maps(out: Path, demo: dict, resolutions: dict) -> Path:
    """Central slices of the true map and of the RELION maps aligned to it, each in its own grey scale."""
    panels = {"truth": out / "simulated/map.mrc", **{name: out / f"evaluation_{name}/map.mrc" for name in demo["maps"]}}
    figure, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.7))
    for axis, (name, path) in zip(axes, panels.items(), strict=True):
        image = central_slice(path)
        low, high = np.percentile(image, [1, 99.8])
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="bilinear")
        note = f"\n{resolutions[name]:.1f} Å against the true map" if name in resolutions else "\nsimulated molecule"
        axis.set_title(name + note, fontsize=11)
        axis.axis("off")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.84, wspace=0.03)
    path = out / "maps.png"
    figure.savefig(path, dpi=130)
    return path


def draw_errors(out: Path, error_deg, is_junk, is_kept, probability, expected_deg) -> Path:
    """Errors of all and of kept particles, the particle probability, and expected against true errors."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 3.8), constrained_layout=True)
    good = ~is_junk
    bins = np.geomspace(max(error_deg[good].min(), 0.05), error_deg[good].max() * 1.01, 45)
    left.hist(error_deg[good], bins, color=GREY, alpha=0.5, label="all particles")
    left.hist(error_deg[good & is_kept], bins, histtype="step", color=BLUE, linewidth=2, label="kept particles")
    left.set(xscale="log", xlabel="orientation error (degrees)", ylabel="particles",
             title="Orientation errors (without junk)")
    left.legend(frameon=False)
    bins = np.linspace(0, 1, 21)
    middle.hist(probability[good], bins, color=BLUE, alpha=0.6, label="particles")
    middle.hist(probability[is_junk], bins, color=ORANGE, alpha=0.7, label="junk")
    middle.axvline(0.5, color="black", linewidth=0.8)
    middle.set(yscale="log", xlabel="particle probability (kept from 0.5)", ylabel="images",
               title="Particles and junk")
    middle.legend(frameon=False, loc="center")
    right.scatter(expected_deg[good & is_kept], error_deg[good & is_kept], s=5, color=BLUE, alpha=0.4, label="kept")
    right.scatter(expected_deg[good & ~is_kept], error_deg[good & ~is_kept], s=5, color=GREY, alpha=0.5,
                  label="rejected")
    ends = [expected_deg[good].min(), expected_deg[good].max()]
    right.plot(ends, ends, color="black", linewidth=0.8)
    right.set(xscale="log", yscale="log", xlabel="expected error (degrees)", ylabel="true error (degrees)",
              title="Expected and true error")
    right.legend(frameon=False, loc="upper left")
    path = out / "errors.png"
    figure.savefig(path, dpi=130)
    return path


def print_figures(error_deg, is_junk, is_kept, resolutions) -> None:
    good = ~is_junk
    print(f"{'':<24}{'all':>10}{'kept':>10}")
    for label, value in (("particles", lambda rows: f"{rows.sum():d}"),
                         ("junk fraction", lambda rows: f"{100 * is_junk[rows].mean():.1f} %"),
                         ("median error", lambda rows: f"{np.median(error_deg[rows & good]):.2f}°"),
                         ("mean error", lambda rows: f"{error_deg[rows & good].mean():.2f}°"),
                         ("within 5°", lambda rows: f"{100 * (error_deg[rows & good] < 5).mean():.1f} %")):
        print(f"  {label:<22}{value(np.ones_like(is_kept)):>10}{value(is_kept):>10}")
    print(f"  {'FSC 0.143, true map':<22}{resolutions['all']:>8.1f} Å{resolutions['kept']:>8.1f} Å")
    print("  (errors without junk, which has no orientation)")


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    demo = json.loads((out / "demo.json").read_text())
    resolutions = {name: evaluate(out, name, demo)["resolution_angstrom"] for name in demo["maps"]}
    ids, error_deg, is_junk = read_errors(out)
    with np.load(Path(demo["ab_initio"]) / "orientation_posterior.npz", allow_pickle=False) as arrays:
        row_of = {int(i): row for row, i in enumerate(arrays["particle_id"])}
        rows = [row_of[i] for i in ids.tolist()]
        probability, expected_deg = arrays["particle_probability"][rows], arrays["expected_error_deg"][rows]
    is_kept = np.isin(ids, demo["kept"])
    pictures = draw_maps(out, demo, resolutions), draw_errors(out, error_deg, is_junk, is_kept, probability, expected_deg)
    print_figures(error_deg, is_junk, is_kept, resolutions)
    print("\nOutput")
    print(f"  Scipion project      {demo['project_path']}")
    for name, path in demo["maps"].items():
        print(f"  map ({name}){'':<{max(1, 14 - len(name))}} {path}")
    for picture in pictures:
        print(f"  figure               {picture}")
    print("\nWhat to open next")
    print(f"  script/scipion project {demo['project']}      the project: protocol forms, logs, Analyze Results")
    print(f"  {Path(demo['ab_initio']) / 'report.html'}      results of ab initio, and next steps")
    print(f"  {pictures[0]}")


if __name__ == "__main__":
    main()
