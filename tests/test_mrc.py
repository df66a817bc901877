import mrcfile
import numpy as np
import pytest

from cryoforum_core.errors import InputError
from cryoforum_core.mrc import MrcStack, StackWriter, read_map, write_map, write_stack

IMAGES = np.random.default_rng(0).normal(0, 20, (5, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 0), (np.float16, 0.05), (np.int16, 1), (np.int8, 1),
                                              (np.uint16, 1)])
def test_stack_of_every_mode_reads_as_float32(tmp_path, dtype, tolerance):
    images = IMAGES + 100 if dtype == np.uint16 else IMAGES
    write_stack(tmp_path / "stack.mrcs", images, 1.5, dtype)
    with MrcStack(tmp_path / "stack.mrcs") as stack:
        assert stack.shape == (5, 8, 8) and stack.pixel_size_angstrom == pytest.approx(1.5)
        found = stack.read(np.array([4, 0, 4]))
    assert found.dtype == np.float32
    assert np.abs(found - images[[4, 0, 4]]).max() <= tolerance


def test_float16_is_mode_12(tmp_path):
    write_stack(tmp_path / "stack.mrcs", IMAGES, 1.0, np.float16)
    with mrcfile.open(tmp_path / "stack.mrcs", header_only=True) as file:
        assert file.header.mode == 12


def test_single_image_is_a_stack_of_one(tmp_path):
    with mrcfile.new(tmp_path / "one.mrc") as file:
        file.set_data(IMAGES[0])
    with MrcStack(tmp_path / "one.mrc") as stack:
        assert stack.shape == (1, 8, 8) and np.array_equal(stack.read([0])[0], IMAGES[0])


def test_map_survives_the_file(tmp_path):
    volume = np.random.default_rng(1).normal(size=(6, 6, 6)).astype(np.float32)
    write_map(tmp_path / "map.mrc", volume, 2.5)
    found, pixel_size_angstrom = read_map(tmp_path / "map.mrc")
    assert np.array_equal(found, volume) and pixel_size_angstrom == pytest.approx(2.5)
    with mrcfile.open(tmp_path / "map.mrc") as file:
        assert file.is_volume()


def test_all_problems_of_a_map_at_once(tmp_path):
    with mrcfile.new(tmp_path / "map.mrc") as file:
        file.set_data(np.zeros((4, 6, 6), dtype=np.float32))
    np.memmap(tmp_path / "map.mrc", dtype=np.float32, mode="r+", offset=1024)[3] = np.nan
    with pytest.raises(InputError) as caught:
        read_map(tmp_path / "map.mrc")
    assert [word in " ".join(caught.value.problems) for word in ("cube", "pixel size", "finite")] == [True] * 3


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 4000])
def test_what_is_no_mrc_file_is_refused(tmp_path, content):
    (tmp_path / "file.mrcs").write_bytes(content)
    with pytest.raises(InputError, match="A stack must"):
        MrcStack(tmp_path / "file.mrcs")


def test_writer_writes_batch_by_batch(tmp_path):
    path = tmp_path / "stack.mrcs"
    with StackWriter(path, 5, 8, 1.5) as writer:
        writer.append(IMAGES[:2])
        writer.append(IMAGES[2:])
        assert not path.exists()
    assert np.array_equal(mrcfile.read(path), IMAGES)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as file:
        assert file.is_image_stack() and float(file.voxel_size.x) == pytest.approx(1.5)


def test_stopped_writer_leaves_what_was_there(tmp_path):
    path = tmp_path / "stack.mrcs"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), StackWriter(path, 5, 8, 1.5) as writer:
        writer.append(IMAGES[:2])
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
