"""The particles' table: one value per particle, from its row or its optics group."""

import numpy as np
import pytest

from cryoforum_core.errors import InputError
from cryoforum_core.particles.table import ParticleTable, as_text


def relion_31(groups=("2", "1", "000002"), optics_groups=(1, 2)):
    return ParticleTable.from_columns(
        {"rlnImageName": [f"{i + 1:06d}@a.mrcs" for i in range(len(groups))], "rlnOpticsGroup": list(groups),
         "rlnDefocusU": [10000.5, 20000.25, 30000.125][:len(groups)]},
        optics={"rlnOpticsGroup": list(optics_groups), "rlnVoltage": [200.0, 300.0][:len(optics_groups)]})


def relion_30(n=3):
    return ParticleTable.from_columns({"rlnImageName": [f"{i + 1}@a.mrcs" for i in range(n)],
                                       "rlnVoltage": np.full(n, 300.0)})


def test_optics_values_are_joined_by_group():
    table = relion_31()
    assert table.version == "3.1" and table.has("rlnVoltage", "rlnDefocusU") and not table.has("rlnVoltage", "rlnNone")
    assert table.floats("rlnVoltage").tolist() == [300.0, 200.0, 300.0]
    assert table.floats("rlnOpticsGroup").tolist() == [2.0, 1.0, 2.0]


def test_relion_30_values_are_the_rows_own():
    table = relion_30()
    assert table.version == "3.0" and table.optics is None
    assert table.floats("rlnVoltage").tolist() == [300.0] * 3


def test_one_optics_group_needs_no_group_column():
    table = ParticleTable.from_columns({"rlnImageName": ["1@a.mrcs", "2@a.mrcs"]}, optics={"rlnVoltage": [300.0]})
    assert table.floats("rlnVoltage").tolist() == [300.0, 300.0]


def test_groups_are_numbers_however_they_are_written():
    assert relion_31(("2.000000", "1", "1.0")).floats("rlnVoltage").tolist() == [300.0, 200.0, 200.0]


def test_an_empty_optics_table_is_called_so():
    with pytest.raises(InputError, match="is empty"):
        relion_31(optics_groups=())


def test_missing_optics_group_is_named():
    with pytest.raises(InputError, match="of group 3, and the table lists 1, 2"):
        relion_31(groups=("1", "3"))
    with pytest.raises(InputError, match="rlnOpticsGroup in both"):
        ParticleTable.from_columns({"rlnImageName": ["1@a.mrcs"]}, optics={"rlnVoltage": [300.0, 200.0]})


def test_values_that_are_no_numbers_are_named_by_row():
    table = relion_30().with_columns({"rlnDefocusU": ["1.5", "abc", "2"]})
    with pytest.raises(InputError, match="rlnDefocusU must contain numbers; particle 2 .*'abc'"):
        table.floats("rlnDefocusU")
    with pytest.raises(InputError, match="whole numbers; particle 1 .*'1.5'"):
        relion_30().with_columns({"rlnImageId": ["1.5", "2", "3"]}).integers("rlnImageId")


def test_integers_keep_all_digits_and_read_whole_floats():
    large = 9007199254740993  # 2^53 + 1, which a float64 cannot hold
    assert relion_30(1).with_columns({"rlnImageId": [large]}).integers("rlnImageId").tolist() == [large]
    assert relion_30(1).with_columns({"rlnImageId": ["12.000000"]}).integers("rlnImageId").tolist() == [12]


def test_missing_column_is_named_with_what_is_there():
    with pytest.raises(InputError, match="need the column rlnAngleRot; .* has rlnImageName, rlnVoltage"):
        relion_30().floats("rlnAngleRot")


def test_with_columns_adds_at_the_end_and_replaces_in_place():
    table = relion_31().with_columns({"rlnNew": [1, 2, 3], "rlnOpticsGroup": ["1", "1", "2"]})
    assert table.names == ("rlnImageName", "rlnOpticsGroup", "rlnDefocusU", "rlnNew")
    assert table.floats("rlnVoltage").tolist() == [200.0, 200.0, 300.0]
    assert relion_31().names == ("rlnImageName", "rlnOpticsGroup", "rlnDefocusU")
    with pytest.raises(ValueError, match="different lengths"):
        relion_31().with_columns({"rlnNew": [1]})


def test_subset_by_indices_and_mask_keeps_the_other_blocks():
    by_index, by_mask = relion_31().subset(np.array([2, 0])), relion_31().subset(np.array([True, False, True]))
    assert by_index.floats("rlnDefocusU").tolist() == [30000.125, 10000.5]
    assert by_mask.floats("rlnDefocusU").tolist() == [10000.5, 30000.125]
    assert len(by_index.optics) == 2 and by_index.floats("rlnVoltage").tolist() == [300.0, 300.0]


def test_write_then_read(tmp_path):
    relion_31().write(tmp_path / "particles.star")
    table = ParticleTable.read(tmp_path / "particles.star")
    assert table.path == tmp_path / "particles.star" and table.version == "3.1"
    assert table.strings("rlnDefocusU").tolist() == ["10000.500000", "20000.250000", "30000.125000"]


def test_unchanged_columns_keep_their_text(tmp_path):
    path = tmp_path / "in.star"
    path.write_text("data_\nloop_\n_rlnImageName\n_rlnX\n1@a.mrcs 1.50000000000000000001\n")
    ParticleTable.read(path).with_columns({"rlnNew": [0.1]}).write(path)
    assert ParticleTable.read(path).strings("rlnX").tolist() == ["1.50000000000000000001"]


def test_the_particles_block_is_found_beside_others(tmp_path):
    path = tmp_path / "in.star"
    path.write_text("data_model_classes\nloop_\n_rlnClass\n1\n\ndata_model_class_1\nloop_\n_rlnImageName\n1@a.mrcs\n")
    table = ParticleTable.read(path)
    assert table.particles.name == "model_class_1" and len(table.blocks) == 2


def test_a_file_without_particles_says_what_it_holds(tmp_path):
    path = tmp_path / "in.star"
    path.write_text("data_general\n_rlnFinalResolution 3.2\n\ndata_fsc\nloop_\n_rlnSpectralIndex\n0\n")
    with pytest.raises(InputError, match="contains data_general, data_fsc"):
        ParticleTable.read(path)


@pytest.mark.parametrize(("value", "text"), [
    (0.0, "0.000000"), (1.25, "1.250000"), (-179.9999996, "-180.000000"), (0.000123456789, "0.00012345679"),
    (-2.5e-9, "-2.5e-09"), (123456789.25, "123456789.250000"), (3, "3"), (True, "1"), (2 ** 63, "9223372036854775808"),
])
def test_numbers_as_text(value, text):
    assert as_text([value]).tolist() == [text]


def test_numbers_as_text_lose_at_most_half_of_the_sixth_decimal():
    values = np.random.default_rng(0).normal(0.0, 100.0, 1000)
    assert np.abs(as_text(values).astype(np.float64) - values).max() <= 0.5000001e-6


def test_a_column_has_one_dimension():
    with pytest.raises(ValueError, match="one dimension"):
        as_text(np.zeros((2, 2)))
