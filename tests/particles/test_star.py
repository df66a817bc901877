"""STAR files: what is read is written again as it was, also as an independent reader sees it."""

import numpy as np
import pytest
import starfile

from cryoforum_core.errors import InputError
from cryoforum_core.particles.star import TEXT, StarBlock, read_star, write_star

RELION_31 = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
           1 opticsGroup1   300.000000


# version 30001

data_particles

loop_
_rlnImageName #1
_rlnDefocusU #2
_rlnOpticsGroup #3
000001@Extract/job012/a.mrcs 13108.082418 1
000002@Extract/job012/a.mrcs 1.2345e+04 1

"""
RELION_30 = """data_images
loop_
_rlnImageName
_rlnOriginX
1@a.mrcs  -0.050400
"""


def columns_of(blocks):
    return [(block.name, block.is_loop, {name: values.tolist() for name, values in block.columns.items()})
            for block in blocks]


def read_text(tmp_path, text):
    path = tmp_path / "in.star"
    path.write_text(text)
    return read_star(path)


@pytest.mark.parametrize("text", [RELION_31, RELION_30])
def test_write_then_read_keeps_blocks_columns_rows_and_comments(tmp_path, text):
    blocks = read_text(tmp_path, text)
    write_star(tmp_path / "out.star", blocks)
    again = read_star(tmp_path / "out.star")
    assert columns_of(again) == columns_of(blocks)
    assert [block.comments for block in again] == [block.comments for block in blocks]


def test_relion_31_values_stay_text(tmp_path):
    optics, particles = read_text(tmp_path, RELION_31)
    assert optics.comments == ("# version 30001",)
    assert list(particles.columns) == ["rlnImageName", "rlnDefocusU", "rlnOpticsGroup"]
    assert particles.columns["rlnDefocusU"].tolist() == ["13108.082418", "1.2345e+04"]


def test_starfile_reads_what_we_write(tmp_path):
    write_star(tmp_path / "out.star", read_text(tmp_path, RELION_31))
    tables = starfile.read(tmp_path / "out.star", always_dict=True)
    assert list(tables) == ["optics", "particles"]
    assert tables["particles"]["rlnImageName"].tolist() == ["000001@Extract/job012/a.mrcs",
                                                             "000002@Extract/job012/a.mrcs"]
    assert tables["particles"]["rlnDefocusU"].tolist() == [13108.082418, 12345.0]


def test_we_read_what_starfile_writes(tmp_path):
    import pandas

    frame = pandas.DataFrame({"rlnImageName": ["1@a b.mrcs", "2@c.mrcs"], "rlnDefocusU": [1.5, 2.5]})
    starfile.write({"particles": frame, "general": {"rlnFinalResolution": 3.25}}, tmp_path / "in.star")
    particles, general = read_star(tmp_path / "in.star")
    assert particles.columns["rlnImageName"].tolist() == ["1@a b.mrcs", "2@c.mrcs"]
    assert particles.columns["rlnDefocusU"].astype(float).tolist() == [1.5, 2.5]
    assert not general.is_loop and general.columns["rlnFinalResolution"].tolist() == ["3.25"]


@pytest.mark.parametrize("value", ["", "two words", "it's", 'say "no" now', "#1.mrc", "mic#1.mrc", "nan", "_x", "loop_",
                                   "data_", "tab\tinside", "'", '"', "007", "Ångström.mrc"])
def test_awkward_values_survive(tmp_path, value):
    columns = {"rlnFirst": np.array([value, "1"], dtype=TEXT), "rlnLast": np.array(["2", value], dtype=TEXT)}
    write_star(tmp_path / "out.star", [StarBlock("particles", columns), StarBlock("pairs", {
        "rlnOnly": np.array([value], dtype=TEXT)}, is_loop=False)])
    loop, pairs = read_star(tmp_path / "out.star")
    assert loop.columns["rlnFirst"].tolist() == [value, "1"]
    assert loop.columns["rlnLast"].tolist() == ["2", value]
    assert pairs.columns["rlnOnly"].tolist() == [value]


def test_a_value_that_no_star_file_can_hold_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "out.star"
    write_star(path, [StarBlock("", {"rlnA": np.array(["old"], dtype=TEXT)})])
    with pytest.raises(ValueError, match="line break"):
        write_star(path, [StarBlock("", {"rlnA": np.array(["two\nlines"], dtype=TEXT)})])
    assert read_star(path)[0].columns["rlnA"].tolist() == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_comments_blank_lines_and_windows_line_ends_are_read_over(tmp_path):
    path = tmp_path / "in.star"
    path.write_bytes(b"data_particles\r\n\r\nloop_\r\n_rlnA #1\r\n_rlnB #2\r\n1 2 # remark\r\n\r\n# a line\r\n3 4\r\n")
    (block,) = read_star(path)
    assert block.columns["rlnA"].tolist() == ["1", "3"] and block.columns["rlnB"].tolist() == ["2", "4"]


def test_first_column_may_start_with_data(tmp_path):
    (block,) = read_text(tmp_path, "data_\nloop_\n_rlnMicrographName\n_rlnB\ndata_01.mrc 5\ndata_02.mrc 6\n")
    assert block.columns["rlnMicrographName"].tolist() == ["data_01.mrc", "data_02.mrc"]


def test_empty_loop_and_single_row(tmp_path):
    empty, single = read_text(tmp_path, "data_a\nloop_\n_rlnA\n_rlnB\n\ndata_b\nloop_\n_rlnA\n7\n")
    assert len(empty) == 0 and list(empty.columns) == ["rlnA", "rlnB"]
    assert single.is_loop and single.columns["rlnA"].tolist() == ["7"]


@pytest.mark.parametrize(("text", "message"), [
    ("data_\nloop_\n_rlnA\n_rlnB\n1 2\n3\n", "one value per column .2.; line 6"),
    ("data_\nloop_\n_rlnA\n_rlnA\n1 2\n", "name each column once; line 4"),
    ("data_\nloop_\n1 2\n", "must name its columns"),
    ("data_\n_rlnA 1 2\n", "a name and one value; line 2"),
    ("hello\n", "consists of data_ blocks; line 1"),
    ("", "must contain a data_ block"),
])
def test_malformed_files_say_what_and_where(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_text(tmp_path, text)


def test_missing_and_binary_files_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="must exist"):
        read_star(tmp_path / "none.star")
    (tmp_path / "image.star").write_bytes(np.full(100, 0xFF, dtype=np.uint8).tobytes())
    with pytest.raises(InputError, match="readable text"):
        read_star(tmp_path / "image.star")


def test_more_rows_than_are_read_and_written_at_once(tmp_path):
    """100,000."""
    columns = {f"rlnColumn{i}": np.array([f"{j * (i + 1):.6f}" for j in range(100_003)], dtype=TEXT) for i in range(4)}
    write_star(tmp_path / "out.star", [StarBlock("particles", columns)])
    (again,) = read_star(tmp_path / "out.star")
    assert (again.columns["rlnColumn3"] == columns["rlnColumn3"]).all()


def test_columns_of_different_length_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="different lengths"):
        StarBlock("", {"rlnA": np.array(["1"], dtype=TEXT), "rlnB": np.array(["1", "2"], dtype=TEXT)})
