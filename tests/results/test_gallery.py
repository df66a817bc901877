"""Examples of particles beside projections, read from a file."""

import subprocess
import sys

import numpy as np
import pytest

from cryoforum_core.results.gallery import Gallery, read_gallery


@pytest.fixture
def path(tmp_path):
    """Five examples of three kinds; each image is its number."""
    number = np.arange(5.0)
    images = np.broadcast_to(number[:, None, None], (5, 4, 4))
    np.savez(tmp_path / "gallery.npz", images=images, projections=-images, particle_id=np.arange(10, 15),
             kind=np.array(["best", "worst", "best", "median", "worst"]), match_score=-number, expected_error_deg=2 * number)
    return tmp_path / "gallery.npz"


def test_examples_of_some_kinds_come_in_the_order_of_the_kinds(path):
    chosen = read_gallery(path).of(["worst", "best", "off-centre"])
    assert chosen.particle_id.tolist() == [11, 14, 10, 12] and chosen.kind.tolist() == ["worst"] * 2 + ["best"] * 2
    for name, factor in (("match_score", -1), ("expected_error_deg", 2)):
        assert getattr(chosen, name).tolist() == [factor * n for n in (1.0, 4.0, 0.0, 2.0)]
    assert (chosen.images == -chosen.projections).all() and chosen.images[:, 0, 0].tolist() == [1.0, 4.0, 0.0, 2.0]
    assert len(read_gallery(path).of([]).images) == 0


def test_a_file_that_would_run_code_is_refused(tmp_path):
    arrays = dict.fromkeys(Gallery.__dataclass_fields__, np.array([object()], dtype=object))
    np.savez(tmp_path / "gallery.npz", **arrays)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_gallery(tmp_path / "gallery.npz")


def test_reading_needs_no_torch():
    subprocess.run([sys.executable, "-c", "import cryoforum_core.results.gallery, sys; assert 'torch' not in sys.modules"],
                   check=True)
