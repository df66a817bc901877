"""The Bingham distribution against Monte Carlo, closed limits, and another program's quadrature."""

import math

import pytest
import scipy.integrate
import scipy.special
import torch

from cryoforum_core.geometry import bingham as posterior
from cryoforum_core.geometry.rotations import angular_distance_deg, random_quaternions, smallest_eigenvector

EIGENVALUES = torch.tensor([
    [0.0, 0, 0, 0], [-2, 1, 1.5, 3], [0, 50, 100, 200], [0, 1e3, 1e4, 1e5], [0, 0, 1e3, 1e3], [5, 1e5, 1e5, 1e5],
], dtype=torch.float64)


def random_bingham(n: int, scale: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return posterior.symmetric_from_10(scale * torch.randn(n, 10, generator=generator, dtype=torch.float64))


def test_ten_numbers_fill_the_lower_triangle_column_by_column():
    matrix = posterior.symmetric_from_10(torch.arange(10.0))
    expected = torch.tensor([[0.0, 1, 2, 3], [1, 4, 5, 6], [2, 5, 7, 8], [3, 6, 8, 9]])
    assert torch.equal(matrix, expected)


def test_psd_form_has_no_negative_eigenvalue_and_any_ten_numbers_do():
    vector = torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.linalg.eigvalsh(posterior.psd_from_10(vector)).min() > -1e-12
    assert torch.linalg.eigvalsh(posterior.symmetric_from_10(vector)).min() < -1


def reference_log_normalizer(eigenvalues: torch.Tensor) -> float:
    """By scipy, with the eigenvalues paired the other way (first with third), in the ring coordinate s."""
    first, third, second, fourth = (float(x) for x in eigenvalues)
    shift = min(first, third)

    def integrand(s: float) -> float:
        exponent = -((first + second) / 2 - shift) * s - ((third + fourth) / 2 - shift) * (1 - s)
        a, b = (second - first) / 2 * s, (fourth - third) / 2 * (1 - s)
        return math.exp(exponent + abs(a) + abs(b)) * scipy.special.i0e(a) * scipy.special.i0e(b)

    value = scipy.integrate.quad(integrand, 0, 1, limit=2000, points=[1 - 1e-4, 1 - 1e-3, 1 - 1e-2, 0.9])[0]
    return math.log(2 * math.pi ** 2 * value) - shift


@pytest.mark.parametrize("row", range(len(EIGENVALUES)))
def test_log_normalizer_agrees_with_another_pairing_integrated_by_scipy(row):
    value = posterior.bingham_log_normalizer(EIGENVALUES[row])
    assert float(value) == pytest.approx(reference_log_normalizer(EIGENVALUES[row]), abs=2e-6)


def test_log_normalizer_limits():
    flat = posterior.bingham_log_normalizer(torch.zeros(4, dtype=torch.float64))
    assert float(flat) == pytest.approx(math.log(2 * math.pi ** 2), abs=1e-12)
    gaps = torch.tensor([1e6, 2e6, 5e6], dtype=torch.float64)
    narrow = posterior.bingham_log_normalizer(torch.cat([gaps.new_zeros(1), gaps]))
    gaussian = math.log(2) + 1.5 * math.log(math.pi) - 0.5 * float(gaps.log().sum())  # two Gaussians, at q and -q
    assert float(narrow) == pytest.approx(gaussian, abs=1e-5)


def test_log_normalizer_is_the_mean_of_the_density_over_the_sphere():
    bingham = random_bingham(5, 2.0)
    q = random_quaternions(400_000, torch.Generator().manual_seed(1), torch.float64)
    density = torch.exp(-torch.einsum("mi,nij,mj->nm", q, bingham, q))
    monte_carlo = torch.log(2 * math.pi ** 2 * density.mean(1))
    assert torch.allclose(posterior.bingham_log_normalizer(torch.linalg.eigvalsh(bingham)), monte_carlo, atol=0.05)


def test_a_constant_added_to_the_matrix_changes_nothing():
    bingham, q = random_bingham(20, 30.0), random_quaternions(20, torch.Generator().manual_seed(2), torch.float64)
    shifted = bingham + 17 * torch.eye(4)
    assert torch.allclose(posterior.bingham_negative_log_likelihood(bingham, q),
                          posterior.bingham_negative_log_likelihood(shifted, q), atol=1e-9)


def test_gradients_of_normalizer_and_likelihood():
    vector = 3 * torch.randn(3, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    vector.requires_grad_()
    q = random_quaternions(3, torch.Generator().manual_seed(4), torch.float64)

    def likelihood(v):
        return posterior.bingham_negative_log_likelihood(posterior.symmetric_from_10(v), q)

    assert torch.autograd.gradcheck(likelihood, vector)
    eigenvalues = torch.tensor([[0.0, 1, 4, 9], [-3, 20, 300, 4000]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(posterior.bingham_log_normalizer, eigenvalues)
    weight = torch.rand(2, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    quaternions = random_quaternions(10, torch.Generator().manual_seed(6), torch.float64).reshape(2, 5, 4)
    assert torch.autograd.gradcheck(lambda w: posterior.bingham_from_weights(quaternions, w), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("diagonal", [[0.0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 5], [0, 1e-7, 1e-7, 1]])
def test_gradients_are_finite_where_eigenvalues_coincide(diagonal, dtype):
    bingham = torch.diag(torch.tensor(diagonal, dtype=dtype)).requires_grad_()
    target = torch.tensor([0.1, 0.7, -0.1, 0.7], dtype=dtype)
    mode = smallest_eigenvector(bingham)
    loss = (mode - target).square().sum() + posterior.bingham_negative_log_likelihood(bingham, target)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(bingham.grad).all()
    assert torch.linalg.norm(mode.detach()) == pytest.approx(1)


def test_maximum_likelihood_from_a_flat_start_recovers_the_distribution():
    true = torch.diag(torch.tensor([40.0, 0, 15, 80], dtype=torch.float64))
    samples = posterior.sample_bingham(true[None], 3000, torch.Generator().manual_seed(0))[0]
    vector = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([vector], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        matrix = posterior.symmetric_from_10(vector).expand(len(samples), 4, 4)
        loss = posterior.bingham_negative_log_likelihood(matrix, samples).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = posterior.eigenvalue_gaps(posterior.symmetric_from_10(vector.detach()))
    assert torch.allclose(fitted, torch.tensor([15.0, 40, 80], dtype=torch.float64), rtol=0.08)
    assert angular_distance_deg(smallest_eigenvector(posterior.symmetric_from_10(vector.detach())),
                                torch.tensor([0.0, 1, 0, 0], dtype=torch.float64)) < 1


@pytest.mark.parametrize("row", range(len(EIGENVALUES)))
def test_expected_error_and_bound_agree_with_samples(row):
    values = EIGENVALUES[row:row + 1]
    expected, bound = posterior.angular_error(values, coverage=0.8)
    samples = posterior.sample_bingham(torch.diag_embed(values), 40_000, torch.Generator().manual_seed(row))
    error = angular_distance_deg(samples[0], torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))
    assert float(expected) == pytest.approx(float(error.mean()), rel=0.02)
    assert float(bound) == pytest.approx(float(error.quantile(0.8)), rel=0.025)


def test_flat_posterior_expects_the_error_of_a_guess():
    expected, _ = posterior.angular_error(torch.zeros(1, 4))
    assert float(expected) == pytest.approx(90 + 2 * 180 / math.pi ** 2, rel=3e-3)  # mean angle of a random rotation


def test_second_moments_of_samples_are_the_gradient_of_the_normalizer():
    bingham = random_bingham(3, 8.0)
    samples = posterior.sample_bingham(bingham, 30_000, torch.Generator().manual_seed(8))
    moments = torch.einsum("bni,bnj->bij", samples, samples) / samples.shape[1]
    variable = bingham.clone().requires_grad_()
    posterior.bingham_log_normalizer(torch.linalg.eigvalsh(variable)).sum().backward()
    assert torch.allclose(moments, -variable.grad, atol=0.01)


def test_weights_give_back_the_mean_rotation():
    centre = random_quaternions(1, torch.Generator().manual_seed(0), torch.float64)
    cloud = posterior.sample_bingham(posterior.isotropic_bingham(centre, torch.tensor([300.0])), 2000,
                                     torch.Generator().manual_seed(1))
    flipped = cloud * torch.where(torch.arange(2000) % 2 == 0, 1.0, -1.0)[None, :, None]
    bingham = posterior.bingham_from_weights(flipped, torch.full((1, 2000), 1 / 2000, dtype=torch.float64))
    assert angular_distance_deg(smallest_eigenvector(bingham), centre).item() < 0.5


def test_dispersions_are_those_of_the_paper():
    eigenvalues = torch.tensor([[-3.0, -1, 0.5, 4]], dtype=torch.float64)
    assert posterior.dispersion_max(eigenvalues).item() == -2
    assert posterior.dispersion_trace(eigenvalues).item() == -(2 + 3.5 + 7)
    spacing = torch.tensor([2.0, 1.5, 3.5])
    wigner = (spacing.log() - 0.25 * math.pi * spacing ** 2).sum()
    assert posterior.dispersion_wigner(eigenvalues).item() == pytest.approx(wigner.item(), rel=1e-5)


def test_posterior_of_a_batch_and_of_nothing():
    bingham = random_bingham(7, 100.0).float()
    belief = posterior.OrientationPosterior.from_bingham(bingham)
    assert len(belief) == 7 and belief.sample(3).shape == (7, 3, 4)
    assert (belief.gaps.diff(dim=1) >= 0).all() and (belief.expected_error_deg < belief.error_bound_deg).all()
    energy = torch.einsum("ni,nij,nj->n", belief.quaternion, bingham, belief.quaternion)
    assert torch.allclose(energy, belief.eigenvalues[:, 0], atol=1e-3)
    assert len(posterior.OrientationPosterior.from_bingham(bingham[:0])) == 0
