"""What both methods of ab-initio write to summary.json."""

import math

from ..imaging.resolution import resolution_angstrom
from ..reconstruction.reconstruct import HalfMaps
from ..training.loop import LoopResult
from ..uncertainty.calibration import error_figures
from .convergence import EndToEndAssessment, HybridAssessment, gained_radius_px
from .end_to_end.setup import EndToEndSetup
from .plan import AbInitioPlan
from .stages.final_matching import FinalOutcome
from .stages.half_maps import RefinedHalfSets
from .stages.network import TrainedNetwork
from .stages.search import SearchOutcome


def hybrid_summary(plan: AbInitioPlan, found: SearchOutcome, refined: RefinedHalfSets, network: TrainedNetwork | None,
                   final: FinalOutcome, maps: HalfMaps, seconds: dict[str, float]) -> dict:
    """``seconds`` of each stage."""
    resolution = resolution_angstrom(maps.fsc, plan.particles.box_size_px, plan.particles.pixel_size_angstrom)
    explained, figures, errors = final.explained_fraction, refined.rounds.figures, error_figures(final.results)
    converged, reason = HybridAssessment(
        found, explained, final.pair.sampled_fraction, plan.extent_angstrom / resolution,
        gained_radius_px(plan, found.common_radius_px), plan.extent_angstrom, plan.symmetry,
        final.recovered_fractions[-1] if final.recovered_fractions else 0.0,
        errors.get("particles_expected_error_deg") if final.calibration is not None else None).convergence()
    return {"converged": converged, "converged_reason": reason, "resolution_angstrom": resolution,
            "method": "hybrid", "symmetry": plan.symmetry, "hand": found.hand,
            "n_particles": len(plan.particles), "half_sets": refined.source,
            **errors, "seeds": found.starts, "seeds_agreement_deg": found.agreement_deg,
            "held_out_structure": found.structure, "held_out_structure_error": found.structure_error,
            "symmetry_score": found.symmetry_score, **_choice(found), "sampled_fraction": final.pair.sampled_fraction,
            "explained_fraction": explained if math.isfinite(explained) else None,
            "rounds": figures, "near_half_turn": figures[-1].get("near_half_turn"),
            "found_again_fraction": final.recovered_fractions,
            "stages": {name: round(s, 1) for name, s in seconds.items()},
            "search_seconds": round(seconds["search"], 1), **(network.figures if network is not None else {}),
            **(final.calibration.summary() if final.calibration is not None else {}), **plan.state.to_dict()}


def _choice(found: SearchOutcome) -> dict:
    """How the symmetry was imposed, and why; nothing for c1."""
    return {} if found.symmetry_choice is None else {"symmetry_choice": found.symmetry_choice}


def end_to_end_summary(setup: EndToEndSetup, result: LoopResult, assessed: EndToEndAssessment, maps: HalfMaps) -> dict:
    plan, config = setup.plan, setup.config
    box, pixel_size_angstrom = plan.particles.box_size_px, plan.particles.pixel_size_angstrom
    converged, reason = assessed.convergence()
    return {"converged": converged, "converged_reason": reason,
            "resolution_angstrom": resolution_angstrom(maps.fsc, box, pixel_size_angstrom),
            "method": "end-to-end", "symmetry": plan.symmetry,
            "hand": "that of the poses given" if config.poses == "known" else "undetermined",
            "n_particles": len(plan.particles), "n_held_out": len(setup.held_out), "n_steps": result.steps,
            "train_seconds": round(result.seconds, 2), "poses": config.poses,
            "encoder": setup.model.network.config.encoder if setup.has_encoder else None,
            "head": setup.model.network.config.head if setup.has_encoder else None,
            "network_box_size_px": setup.views.settings.box_size_px, "box_size_px": box,
            "pixel_size_angstrom": pixel_size_angstrom, "validation_loss": assessed.loss,
            "loss_without_poses": assessed.loss_without_poses, "loss_of_noise": assessed.loss_of_noise,
            "explained_fraction": assessed.explained_fraction, "noise_gain_deviations": assessed.noise_gain_deviations,
            "turn_error_deg": assessed.rotation_error_deg, "projection_error_deg": assessed.projection_error_deg,
            **plan.state.to_dict()}
