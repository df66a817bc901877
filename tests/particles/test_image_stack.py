"""Images of several stacks: found where RELION and Scipion put them, read in any order with few files open."""

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from cryoforum_core.errors import InputError
from cryoforum_core.mrc import write_stack
from cryoforum_core.particles.image_stack import (
    ImageLocations,
    ImageStack,
    find_stack,
    locate_images,
    parse_image_names,
    save_table,
    search_directories,
)
from cryoforum_core.particles.star import TEXT
from cryoforum_core.particles.table import ParticleTable

BOX = 4


def numbered_stacks(directory: Path, n_stacks: int, n_images: int, dtype=np.float32) -> list[Path]:
    """Stacks whose image j of stack i has the value 10 i + j in all pixels, but pixel [0, 1], which has one more."""
    paths = []
    for i in range(n_stacks):
        images = np.full((n_images, BOX, BOX), 10.0 * i) + np.arange(n_images)[:, None, None]
        images[:, 0, 1] += 1
        paths.append(directory / f"stack{i}.mrcs")
        write_stack(paths[-1], images, 1.5, dtype=dtype)
    return paths


def test_smaller_images_among_larger_ones_are_set_into_their_mean(tmp_path):
    write_stack(tmp_path / "small.mrcs", np.arange(4.0).reshape(1, 2, 2), 1.5)
    paths = [*numbered_stacks(tmp_path, 1, 1), tmp_path / "small.mrcs"]
    for pairs in ([(1, 0), (0, 0)], [(0, 0), (1, 0)]):
        images = dict(zip([path for path, _ in pairs], stack_of(paths, pairs).read([0, 1])))
        assert images[1][1:3, 1:3].tolist() == [[0, 1], [2, 3]] and images[1][0].tolist() == [1.5] * 4
        assert images[0][0].tolist() == [0, 1, 0, 0]
    images = stack_of(paths[::-1], [(0, 0), (1, 0)]).read([0, 1])
    assert images[0][1:3, 1:3].tolist() == [[0, 1], [2, 3]] and images[1][0].tolist() == [0, 1, 0, 0]


def stack_of(paths, pairs, **options):
    path_of_image, index = np.array(pairs).T
    return ImageStack(ImageLocations(tuple(paths), path_of_image, index), **options)


def table_of(names, path=None):
    return ParticleTable(ParticleTable.from_columns({"rlnImageName": names}).blocks, path)


def test_images_come_in_the_order_asked_for(tmp_path):
    stack = stack_of(numbered_stacks(tmp_path, 3, 5), [(2, 4), (0, 1), (1, 0), (2, 0)])
    images = stack.read(np.array([3, 0, 1, 1, 2]))
    assert images.dtype == np.float32 and images.shape == (5, BOX, BOX)
    assert images[:, 2, 2].tolist() == [20.0, 24.0, 1.0, 1.0, 10.0]
    assert images[0, 0, 1] == 21.0 and images[0, 1, 0] == 20.0  # [y, x]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.int16, np.uint16])
def test_pixel_types(tmp_path, dtype):
    stack = stack_of(numbered_stacks(tmp_path, 1, 3, dtype), [(0, 2), (0, 0)])
    assert stack.read([0, 1])[:, 0, 0].tolist() == [2.0, 0.0]


def test_one_image_file_is_a_stack_of_one(tmp_path):
    write_stack(tmp_path / "one.mrc", np.arange(16.0).reshape(1, 4, 4), 1.0)
    assert stack_of([tmp_path / "one.mrc"], [(0, 0)]).read([0])[0, 1, 2] == 6.0


def test_open_files_are_bounded_and_reopened(tmp_path):
    pairs = [(i, 0) for i in range(6)]
    stack = stack_of(numbered_stacks(tmp_path, 6, 1), pairs, max_open=2)
    for _ in range(2):
        assert stack.read(np.arange(6))[:, 1, 1].tolist() == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
        assert stack.n_open == 2
    stack.close()
    assert stack.n_open == 0 and stack.read([5])[0, 1, 1] == 50.0


def test_threads_share_a_stack_with_fewer_files_than_threads(tmp_path):
    stack = stack_of(numbered_stacks(tmp_path, 8, 4), [(i, j) for i in range(8) for j in range(4)], max_open=2)
    wrong = []

    def read(seed):
        generator = np.random.default_rng(seed)
        for _ in range(40):
            rows = generator.integers(0, 32, 9)
            if not np.array_equal(stack.read(rows)[:, 1, 1], 10.0 * (rows // 4) + rows % 4):
                wrong.append(rows)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and stack.n_open <= 2


def test_subset_and_pickle(tmp_path):
    stack = stack_of(numbered_stacks(tmp_path, 2, 3), [(0, 0), (1, 2), (0, 1)])
    stack.read([0])
    part = pickle.loads(pickle.dumps(stack.subset(np.array([2, 1]))))
    assert len(part) == 2 and part.read([0, 1])[:, 1, 1].tolist() == [1.0, 12.0]
    assert len(stack.subset(np.array([False, True, False]))) == 1


def test_image_names():
    names = np.array(["000012@a/b.mrcs", "3@c@d.mrcs", "single.mrc"], dtype=TEXT)
    stacks, index = parse_image_names(names)
    assert stacks.tolist() == ["a/b.mrcs", "c@d.mrcs", "single.mrc"] and index.tolist() == [11, 2, 0]


@pytest.mark.parametrize("name", ["0@a.mrcs", "x@a.mrcs", "1@", "@a.mrcs", "-1@a.mrcs", "1.5@a.mrcs"])
def test_malformed_image_names_are_named(name):
    with pytest.raises(InputError, match="particle 2 has"):
        parse_image_names(np.array(["1@a.mrcs", name], dtype=TEXT))


def test_stacks_are_looked_for_beside_the_star_then_here_then_above(tmp_path, monkeypatch):
    project, here = tmp_path / "project", tmp_path / "here"
    job = project / "Runs" / "job1"
    for directory in (job, here):
        directory.mkdir(parents=True)
    monkeypatch.chdir(here)
    directories = search_directories(job / "particles.star")
    for place in (project, here, job):
        write_stack(place / "a.mrcs", np.zeros((1, BOX, BOX)), 1.0)
        assert find_stack("a.mrcs", directories) == place / "a.mrcs"
    assert find_stack(str(project / "a.mrcs"), directories) == project / "a.mrcs"
    assert find_stack("b.mrcs", directories) is None


def test_missing_stacks_are_listed_with_the_places_looked_at(tmp_path):
    numbered_stacks(tmp_path, 1, 1)
    with pytest.raises(InputError, match="2 do not: absent.mrcs, gone.mrcs") as caught:
        locate_images(table_of(["1@stack0.mrcs", "1@gone.mrcs", "2@gone.mrcs", "1@absent.mrcs"], tmp_path / "in.star"))
    (problem,) = caught.value.problems
    assert str(tmp_path) in problem


def test_at_most_ten_missing_stacks_are_named(tmp_path):
    with pytest.raises(InputError, match="gone09.mrcs and 15 more") as caught:
        locate_images(table_of([f"1@gone{i:02d}.mrcs" for i in range(25)], tmp_path / "in.star"))
    assert "gone10" not in str(caught.value)


def test_saved_elsewhere_image_names_still_lead_to_the_images(tmp_path, monkeypatch):
    data, run, here = (tmp_path / name for name in ("data", "run", "here"))
    for directory in (data, run, here):
        directory.mkdir()
    monkeypatch.chdir(here)
    numbered_stacks(data, 1, 3)
    numbered_stacks(here, 2, 3)
    table = table_of(["000003@stack0.mrcs", "2@stack1.mrcs", "1@unknown.mrcs"], data / "in.star")
    save_table(table, run / "out.star")
    names = ParticleTable.read(run / "out.star").strings("rlnImageName").tolist()
    # beside the STAR file only; found from everywhere as it is; not there at all
    assert names == [f"000003@{data / 'stack0.mrcs'}", "2@stack1.mrcs", "1@unknown.mrcs"]


def test_saved_in_place_the_names_stay(tmp_path):
    numbered_stacks(tmp_path, 1, 1)
    save_table(table_of(["1@stack0.mrcs"], tmp_path / "in.star"), tmp_path / "out.star")
    assert ParticleTable.read(tmp_path / "out.star").strings("rlnImageName").tolist() == ["1@stack0.mrcs"]
