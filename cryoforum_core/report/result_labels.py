"""The keys of summary.json in words, with units. The keys themselves are an interface and keep their names."""

from collections.abc import Mapping

from .page import with_angstrom_sign

LABELS = {
    # every job
    "job": "job",
    "version": "version of cryoforum",
    "seconds": "run time (s)",
    "symmetry": "point group",
    "symmetry_choice": "how the symmetry was imposed",
    "used": "used",
    "c1_symmetry_score": "correlation of the map found in c1 with its symmetrised copy",
    "c1_explained_fraction": "fraction of the fine details that this map explains",
    "gain": "log-evidence gained with the symmetry from the start (nats per image)",
    "gain_error": "its standard error",
    "sentence": "in words",
    "symmetry_from_the_start": "symmetry from the start",
    "n_particles": "particles",
    "box_size_px": "box (px)",
    "pixel_size_angstrom": "pixel size (Å)",
    "contrast": "contrast of protein in the images",
    "ctf_state": "CTF correction of the images",
    "grey_unit": "grey value used as the unit of intensity (images without noise only)",
    "half_sets": "source of the half sets",
    # simulate
    "snr": "signal-to-noise ratio",
    "n_junk": "junk images",
    "junk": "junk",
    "n_micrographs": "micrographs",
    "n_minor_state": "particles in the minor state",
    "n_with_neighbour": "particles with a neighbour in the box",
    # train
    "validation_source": "validation images",
    "validation_loss": "validation loss",
    "validation_median_error_deg": "median error of the network, validation (degrees)",
    "validation_mean_error_deg": "mean error of the network, validation (degrees)",
    "validation_fraction_below_10deg": "fraction with an error below 10 degrees, validation",
    "validation_negative_log_likelihood": "negative log-likelihood per image, validation",
    "validation_median_shift_error_angstrom": "median shift error of the network, validation (Å)",
    "steps": "training steps",
    "n_steps": "training steps",
    "train_seconds": "training time (s)",
    "stopped_by": "reason why training stopped",
    "n_labelled": "particles whose poses served as labels",
    "signal_scale": "scale factor from the map to the normalised images",
    "network_box_size_px": "box of the network (px)",
    "network_pixel_size_angstrom": "pixel size of the network (Å)",
    "shift_rms_angstrom": "simulated shifts, rms along x and y (Å)",
    # predict
    "images_per_second": "speed (images/s)",
    "median_expected_error_deg": "median expected error (degrees)",
    "particles_expected_error_deg": "median expected error without junk (degrees)",
    "particles_observed_error_deg": "median error by the agreement of two halves of the Fourier pixels (degrees)",
    "refinement": "refinement",
    "searched_fraction": "fraction of particles searched over all orientations",
    "model_applies": "network and map fit the particles",
    "model_applies_cause": "mismatch found",
    "model_applies_reason": "assessment of network and map",
    "model_applies_doubts": "mismatch warnings",
    "signal_excess_z": "excess of the power at the box centre over that in the corners (standard errors)",
    "promise_kept": "fit of the map to the images, relative to its fit to its own simulated projections (0: chance, 1: "
                    "equally good)",
    "promise_significance": "expected fit above chance (standard errors)",
    "estimated_magnification": "magnification estimated from the match, relative to that stated",
    "estimated_pixel_size_angstrom": "pixel size estimated from the match (Å)",
    "explained_amplitude": "signal amplitude explained at the refined poses (fraction)",
    "fit_median": "median fit (standard deviations; expected: 0)",
    "fit_deviation": "spread of the fit (expected: 1)",
    "poor_match_fraction": "fraction of images with a match score below -4",
    "minor_state_fraction": "fraction of particles in a second state (none: no second state found)",
    "minor_state_gain": "log-likelihood gained by two states in place of one (nats per held-out image; the lower of two halves)",
    "minor_state_gain_error": "its standard error",
    "major_state_resolution_angstrom": "resolution of the map of state 1 (Å)",
    "minor_state_resolution_angstrom": "resolution of the map of state 2 (Å)",
    "other_molecule_images": "rejected images that may show another molecule (at most)",
    "other_molecule_sentence": "another molecule among the rejected images",
    "unusual_micrographs": "micrographs with unusual noise or contrast",
    "error_bound_coverage": "nominal coverage of the error bounds",
    "error_bound_held": "empirical coverage of the error bounds",
    "shift_error_bound_held": "empirical coverage of the shift error bounds",
    "calibration_source": "calibration particles",
    "n_calibration_particles": "number of calibration particles",
    # select
    "n_selected": "particles kept",
    "n_rejected": "particles rejected",
    "reasons": "particles rejected, by reason",
    "measure": "measure",
    "column": "column of the measure",
    "threshold": "threshold",
    "explanation": "criterion",
    "n_short_of_view_shares": "particles by which groups of viewing directions fall short of their share, junk excluded",
    "view_cone_percent": "48 groups of viewing directions (percent)",
    "before": "share of all particles",
    "after": "share of kept particles",
    "auto": "selection by map quality (--auto)",
    "kept_fraction": "fraction kept",
    "gain_over_random_angstrom": "resolution gained over a random subset (Å)",
    "gain_over_random_deviation_angstrom": "standard deviation of this gain (Å)",
    "resolution_all_angstrom": "resolution, all particles (Å)",
    "resolution_kept_angstrom": "resolution, kept particles (Å)",
    "resolution_random_angstrom": "resolution, random subset (Å)",
    "information_kept_over_all": "information in the map, relative to all particles",
    "discount_of_empty_images": "signal of an image of noise after alignment, relative to a particle's",
    # reconstruct and evaluate
    "resolution_angstrom": "resolution, FSC 0.143 (Å)",
    "resolution_fsc_05_angstrom": "resolution, FSC 0.5 (Å)",
    "resolution_at_fsc_0.5_angstrom": "resolution, FSC 0.5 (Å)",
    "median_error_deg": "median error (degrees)",
    "mean_error_deg": "mean error (degrees)",
    "fraction_below_5deg": "fraction with an error below 5 degrees",
    "fraction_below_10deg": "fraction with an error below 10 degrees",
    "median_shift_error_angstrom": "median shift error (Å)",
    "n_compared": "particles compared",
    "with_junk": "all images, junk included",
    "by_group": "by group",
    "group": "group",
    "frame_quaternion": "rotation onto the frame of the known poses (quaternion x, y, z, w)",
    "frame_translation_angstrom": "translation onto the frame of the known poses (Å)",
    "is_mirrored": "mirrored onto the known poses",
    # ab-initio
    "converged": "converged",
    "converged_reason": "assessment of convergence",
    "method": "method",
    "hand": "hand",
    "seeds": "searches from random starts",
    "seed": "start",
    "score": "log-evidence per held-out image, relative to noise alone (nats)",
    "structure": "log-evidence gain over the spherically averaged map (nats)",
    "explained": "signal power explained beyond the starting resolution of the search (fraction)",
    "angle_to_best_deg": "median angle between its poses and those of the best start (degrees)",
    "chosen": "chosen",
    "seeds_agreement_deg": "median angle between the poses of the best and the nearest start (degrees)",
    "held_out_structure": "log-evidence per held-out image, gain over the spherically averaged map (nats)",
    "held_out_structure_error": "standard error of this gain (nats)",
    "symmetry_score": "correlation of the map with its symmetrised copy",
    "sampled_fraction": "fraction of Fourier space covered by the viewing directions",
    "explained_fraction": "signal explained in images that were not used for the map (fraction)",
    "rounds": "rounds of half-map refinement",
    "max_radius_px": "highest frequency used (cycles per box)",
    "resolution_radius_px": "resolution (cycles per box)",
    "pose_change_deg": "median pose change (degrees)",
    "near_half_turn": "pseudo-symmetry (C2)",
    "agreement": "mean FSC with the copy rotated by 180 degrees",
    "is_told_apart": "resolved",
    "found_again_fraction": "fraction of all particles whose misassigned pose was corrected in each final matching",
    "stages": "time of each stage (s)",
    "search_seconds": "time of the search (s)",
    "end_to_end_kept": "was the network kept after end-to-end training?",
    "end_to_end_loss_before": "unexplained power before end-to-end training (fraction)",
    "end_to_end_loss_after": "unexplained power after end-to-end training (fraction)",
    "n_held_out": "held-out particles",
    "poses": "source of the poses",
    "encoder": "encoder",
    "head": "rotation parametrisation",
    "loss_without_poses": "unexplained power if all particles are modelled by one average image (fraction)",
    "loss_of_noise": "noise power (fraction)",
    "noise_gain_deviations": "power explained, compared with images of noise (standard deviations)",
    "turn_error_deg": "median disagreement after an in-plane rotation of the images (degrees)",
    "projection_error_deg": "median error of the network on projections of the map (degrees)",
    # benchmark
    "table": "published table",
    "scale": "size of the benchmark (small or full)",
    "n_runs": "number of runs",
    "rows": "table",
    "runs": "runs",
    "hardware": "hardware",
}


def label(key: str) -> str:
    """The words for a key; the key itself where there are none."""
    return LABELS.get(key, key)


def labelled(summary: Mapping[str, object]) -> dict[str, str]:
    """Labels and values of a summary as text, entries within entries included."""
    return {label(key): text_of(value) for key, value in summary.items()}


def text_of(value: object) -> str:
    """A value of a JSON file as text: numbers to six digits, a line for each entry of a list of entries."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{label(key)}: {text_of(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        separator = "\n" if any(isinstance(each, Mapping) for each in value) else ", "
        return separator.join(text_of(each) for each in value) or "none"
    return with_angstrom_sign(str(value))
