import pytest
import torch

from cryoforum_core.geometry.pose_errors import align_frame, rotation_errors_deg
from cryoforum_core.geometry.rotations import compose, random_quaternions
from cryoforum_core.geometry.so3_grid import super_fibonacci
from cryoforum_core.geometry.symmetry import symmetry_group
from cryoforum_core.imaging.projection import FourierVolume, Reconstructor, slice_points
from cryoforum_core.imaging.resolution import fourier_shell_correlation
from cryoforum_core.imaging.symmetry_frame import symmetry_score
from cryoforum_core.imaging.volume_frame import mirror_volume, rotate_volume
from cryoforum_core.matching.exhaustive_search import displacement_grid
from cryoforum_core.matching.likelihood import log_likelihood_ratio
from cryoforum_core.matching.stochastic import (
    GridPosterior,
    StochasticSearch,
    StochasticSettings,
    signal_power,
    symmetrised_sums,
)
from cryoforum_core.matching.whitened_images import WhitenedImages

from .conftest import simulate

SETTINGS = StochasticSettings(steps=120, batch_images=120, last_radius_px=10.0, first_rotations=600,
                              last_rotations=1500, max_displacement_px=3.0, mask_radius_px=14.0)


@pytest.fixture(scope="module")
def simulated():
    return simulate(600, snr=1.0, seed=3)


@pytest.fixture(scope="module")
def images(simulated):
    return WhitenedImages.from_transforms(simulated.images_ft, simulated.ctf, simulated.noise_spectrum, 10.0)


def best_poses(images, volume):
    volume = FourierVolume.from_real(volume, max_radius_px=11)
    offsets = displacement_grid(3.0, 1.0)
    return torch.cat([GridPosterior.of(images[rows], volume, super_fibonacci(3000), torch.zeros(len(rows), 2),
                                       offsets).best_rotation() for rows in torch.arange(len(images)).split(60)])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_random_start_finds_the_molecule(simulated, images, seed):
    search = StochasticSearch(images, SETTINGS, seed)
    first = search.step().log_evidence
    while search.step_number < SETTINGS.steps:
        last = search.step()
    assert last.log_evidence > first + 3 and last.radius_px == pytest.approx(10.0, abs=0.3)
    group = symmetry_group("c1")
    found = best_poses(images[:240], search.volume())
    alignment = align_frame(found, simulated.quaternion[:240], group, allow_mirror=True)
    error = rotation_errors_deg(alignment.apply(found.double()), simulated.quaternion[:240].double(), group)
    assert error.median() < 12


@pytest.mark.parametrize("symmetry, tolerance", [("d2", 1e-5), ("o", 1e-5), ("c3", 0.15), ("i", 0.2)])
def test_symmetrised_sums_are_those_of_insertion_at_all_equivalent_poses(symmetry, tolerance):
    """Exactly for groups of the grid; for others interpolated, which takes away from the box's edge: noise fills it."""
    generator, group = torch.Generator().manual_seed(0), symmetry_group(symmetry)
    quaternion = random_quaternions(40, generator)
    k = torch.cartesian_prod(torch.arange(0.0, 10.0), torch.arange(-9.0, 10.0))
    k = k[(k.norm(dim=1) <= 9) & (k.norm(dim=1) > 0)]
    values = torch.view_as_complex(torch.randn(40, len(k), 2, generator=generator))
    weights = torch.rand(40, len(k), generator=generator)
    once, equivalent = Reconstructor(32, max_radius_px=9.0), Reconstructor(32, max_radius_px=9.0)
    once.insert_points(values, weights, slice_points(quaternion, k))
    for element in group:
        equivalent.insert_points(values, weights, slice_points(compose(quaternion, element), k))
    once.sums = symmetrised_sums(once, group)
    found, expected = (each.posterior_mean(torch.ones(17)) for each in (once, equivalent))
    assert (found - expected).norm() < tolerance * expected.norm()


def test_a_search_under_a_group_finds_a_near_spherical_shell_on_the_groups_axes():
    """24 blobs in a shell: the map is found in its own frame, but for the hand. Without the group it is not."""
    group = symmetry_group("o")
    axis = torch.arange(32) - 16.0
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    shell = 0.5 * torch.exp(-(torch.sqrt(x**2 + y**2 + z**2) - 9.5).square() / 4)
    place = torch.nn.functional.normalize(torch.tensor([0.75, 0.5, 0.1]), dim=0) * 10
    blob = torch.exp(-((x - place[0])**2 + (y - place[1])**2 + (z - place[2])**2) / 3)
    volume = shell + torch.stack([rotate_volume(blob, element) for element in group]).sum(0)
    known = simulate(500, snr=0.5, seed=5, volume=volume)
    images = WhitenedImages.from_transforms(known.images_ft, known.ctf, known.noise_spectrum, 14.0)
    settings = StochasticSettings(steps=80, batch_images=100, first_radius_px=12.0, last_radius_px=14.0, first_rotations=600,
                                  last_rotations=1000, max_displacement_px=3.0)
    with_group, without = StochasticSearch(images, settings, 1, group), StochasticSearch(images, settings, 1)
    agreement = []
    for search in (with_group, without):
        for _ in range(settings.steps):
            search.step()
        found = search.volume()
        agreement.append(max(float(fourier_shell_correlation(hand, volume)[10:13].mean())
                             for hand in (found, mirror_volume(found))))
    assert agreement[0] > 0.8 and agreement[1] < 0.5
    assert symmetry_score(FourierVolume.from_real(with_group.volume()), group) > 0.99


def test_a_stopped_search_goes_on_alike(images):
    settings = StochasticSettings(steps=8, batch_images=100, last_radius_px=10.0, first_rotations=200,
                                  last_rotations=300, max_displacement_px=3.0)
    whole, first = StochasticSearch(images, settings, 5), StochasticSearch(images, settings, 5)
    for _ in range(8):
        whole.step()
    for _ in range(4):
        first.step()
    state = {name: value.clone() if torch.is_tensor(value) else value for name, value in first.state_dict().items()}
    second = StochasticSearch(images, settings, 5)
    second.load_state_dict(state)
    for _ in range(4):
        second.step()
    assert torch.equal(whole.volume(), second.volume())


def test_every_pass_sees_every_image_once(images):
    search = StochasticSearch(images, SETTINGS, 0)
    rows = []
    for search.step_number in range(10):  # 600 images in batches of 120: two passes
        rows.append(search._batch_rows())
    for one_pass in (rows[:5], rows[5:]):
        assert torch.equal(torch.cat(one_pass).sort().values, torch.arange(600))


def test_the_posterior_is_that_of_the_likelihood(simulated, images):
    """Against the likelihood of each pose on its own, rotations and displacements one by one."""
    volume = FourierVolume.from_real(simulated.volume, max_radius_px=11)
    grid = random_quaternions(7, torch.Generator().manual_seed(0))
    offsets, centre = displacement_grid(1.0, 1.0), torch.tensor([[0.5, -1.0], [0.0, 2.0]])
    some = images[:2]
    posterior = GridPosterior.of(some, volume, grid, centre, offsets)
    score = torch.stack([torch.stack([log_likelihood_ratio(some, volume, rotation.expand(2, 4), centre + offset)
                                      for rotation in grid]) for offset in offsets]).permute(2, 0, 1)
    expected = torch.softmax(score.flatten(1), 1).reshape(score.shape)
    assert torch.allclose(posterior.weight, expected, atol=1e-3)
    evidence = score.flatten(1).logsumexp(1) - torch.log(torch.tensor(7.0 * len(offsets)))
    assert torch.allclose(posterior.log_evidence, evidence, rtol=1e-3, atol=0.05)


def test_picking_entries_and_matrix_products_insert_the_same(simulated, images):
    from cryoforum_core.matching import stochastic

    volume = FourierVolume.from_real(simulated.volume, max_radius_px=11)
    grid, offsets = super_fibonacci(50), displacement_grid(1.0, 1.0)
    posterior = GridPosterior.of(images[:20], volume, grid, torch.zeros(20, 2), offsets)
    sums = []
    for limit in (0, 10**9):
        stochastic_limit, stochastic._DENSE_ABOVE = stochastic._DENSE_ABOVE, limit
        numerator, weight, _ = posterior.weighted_slices()
        stochastic._DENSE_ABOVE = stochastic_limit
        sums.append((numerator.sum(0), weight.sum(0)))
    assert torch.allclose(sums[0][0], sums[1][0], rtol=1e-3, atol=1e-2)
    assert torch.allclose(sums[0][1], sums[1][1], rtol=1e-4)


def test_noise_alone_has_no_evidence(simulated, images):
    """The mean likelihood ratio of noise is 1 for any map, so its logarithm is not above 0 on average."""
    volume = FourierVolume.from_real(simulated.volume, max_radius_px=11)
    generator = torch.Generator().manual_seed(2)
    noise = torch.view_as_complex(torch.randn(*images.data[:100].shape, 2, generator=generator) * 0.5 ** 0.5)
    only_noise = WhitenedImages(noise, images.transfer[:100], images.k, images.radius, images.box_size_px)
    evidence = GridPosterior.of(only_noise, volume, super_fibonacci(500), torch.zeros(100, 2),
                                displacement_grid(1.0, 1.0)).log_evidence
    assert evidence.mean() < 0.5


def test_signal_power_is_that_of_the_map(simulated, images):
    power = signal_power(images)
    volume = FourierVolume.from_real(simulated.volume, max_radius_px=11)
    views = random_quaternions(100, torch.Generator().manual_seed(1))
    expected = volume.project(views).abs().square().mean(0)
    for shell in (3, 5):
        on_shell = (images.radius.round() == shell)
        k = images.k[on_shell].long()
        truth = expected[k[:, 1] % images.box_size_px, k[:, 0]].mean()
        assert power[shell] == pytest.approx(truth.item(), rel=0.35)
