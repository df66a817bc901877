# **************************************************************************
# *
# * Authors:     The cryoforum authors
# *
# * This program is free software; you can redistribute it and/or modify
# * it under the terms of the GNU General Public License as published by
# * the Free Software Foundation; either version 3 of the License, or
# * (at your option) any later version.
# *
# * This program is distributed in the hope that it will be useful,
# * but WITHOUT ANY WARRANTY; without even the implied warranty of
# * MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE.  See the
# * GNU General Public License for more details.
# *
# * You should have received a copy of the GNU General Public License
# * along with this program; if not, see <https://www.gnu.org/licenses/>.
# *
# **************************************************************************
"""Scipion sets -> the engine's files, and the engine's results -> Scipion attributes. Joined by particle id.

Poses: the engine works with RELION's A (x_image = A x_molecule) and rlnOrigin shifts; Scipion stores, for a set with
projection alignment, M = inv([A | -s]) = [A' | A' s], s the rlnOrigin shift in pixels (third component 0).
"""

import io
import json
import logging
import os
import sqlite3
from dataclasses import dataclass
from typing import Dict

import mrcfile
import numpy as np
from emtable import Table
from scipy.spatial.transform import Rotation

from pwem.emlib.image import ImageHandler
from pwem.objects import Transform
from pyworkflow.object import Float, Integer, String

from .constants import (ALTERNATIVE, CENTRE_X, CENTRE_Y, DISPERSION_MAX, DISPERSION_TRACE, DISPERSION_WIGNER,
                        ERROR_BOUND, EXPECTED_ERROR, EXPECTED_SHIFT_ERROR, FIGURE_OF_MERIT, HALF_SET, MATCH_SCORE,
                        MINOR_STATE_PROBABILITY, PARTICLE_ATTRIBUTES, PARTICLE_PROBABILITY, REASON, REJECTION_REASON,
                        SHIFT_ERROR_BOUND, STATE, TEXT_ATTRIBUTES)
from .engine_names import NO_REASON, OFF_CENTRE

logger = logging.getLogger(__name__)
MRC_EXTENSIONS = ('.mrc', '.mrcs')


# -------------------------------- reading a set --------------------------------
def readColumns(emSet, names):
    """ Columns of a set on disk, in id order, without an object for each item (10 times faster).

    names: attributes such as 'id', '_filename' or '_ctfModel._defocusU'; those the set lacks are left out.
    Returns a dict name -> list.
    """
    prefix = (emSet.getPrefix() or '').strip()
    if prefix and not prefix.endswith('_'):
        prefix += '_'
    connection = sqlite3.connect('file:%s?mode=ro' % os.path.abspath(emSet.getFileName()), uri=True)
    try:
        columns = dict(connection.execute('SELECT label_property, column_name FROM %sClasses' % prefix))
        columns.update(id='id', enabled='enabled')
        found = [name for name in names if name in columns]
        rows = connection.execute('SELECT %s FROM %sObjects ORDER BY id'
                                  % (', '.join(columns[name] for name in found), prefix)).fetchall()
    finally:
        connection.close()
    values = zip(*rows) if rows else ([] for _ in found)
    return {name: list(column) for name, column in zip(found, values)}


def readAttributes(emSet, names):
    """ Numerical attributes of the enabled items of a set: (ids (n,) int, dict name -> (n,) float array).

    Attributes the set lacks are left out; a value that is missing in one item is NaN, or "none" of those that are texts.
    """
    columns = readColumns(emSet, ['id', 'enabled', *names])
    enabled = np.array(columns.pop('enabled'), dtype=bool)
    ids = np.array(columns.pop('id'), dtype=np.int64)[enabled]
    return ids, {name: (np.array([x or NO_REASON for x in column], dtype=str) if name in TEXT_ATTRIBUTES else
                        np.array([np.nan if x is None else x for x in column], dtype=float))[enabled]
                 for name, column in columns.items()}


# -------------------------------- poses --------------------------------
def transformsToRelion(matrices):
    """ Scipion's matrices (n, 4, 4) -> RELION's rot, tilt, psi in degrees (n, 3) and rlnOrigin in px (n, 2). """
    matrices = np.asarray(matrices, dtype=float)
    a = np.transpose(matrices[:, :3, :3], (0, 2, 1))
    shift = np.einsum('nij,nj->ni', a, matrices[:, :3, 3])[:, :2]
    sinTilt = np.hypot(a[:, 2, 0], a[:, 2, 1])
    tilt = np.arctan2(sinTilt, a[:, 2, 2])
    # seen along the axis only rot + psi (or rot - psi) is defined: psi = 0 then
    polar = sinTilt < 1e-7
    sign = np.sign(a[:, 2, 2])
    rot = np.where(polar, np.arctan2(sign * a[:, 0, 1], sign * a[:, 0, 0]), np.arctan2(a[:, 2, 1], a[:, 2, 0]))
    psi = np.where(polar, 0.0, np.arctan2(a[:, 1, 2], -a[:, 0, 2]))
    return np.rad2deg(np.stack([rot, tilt, psi], axis=1)), shift


def transformsToQuaternions(matrices):
    """ Scipion's matrices (n, 4, 4) -> quaternions (n, 4), xyzw, of RELION's A. """
    return Rotation.from_matrix(np.transpose(np.asarray(matrices, dtype=float)[:, :3, :3], (0, 2, 1))).as_quat()


def shiftToTransform(shiftAngstrom, pixelSize):
    """ Origin (2,) in Angstrom -> Scipion's matrix (4, 4) of a 2D alignment that is a shift only. """
    matrix = np.eye(4)
    matrix[:2, 3] = np.asarray(shiftAngstrom, dtype=float) / pixelSize
    return matrix


def quaternionsToTransforms(quaternions, shiftAngstrom, pixelSize):
    """ Quaternions (n, 4), xyzw, of RELION's A and rlnOrigin shifts (n, 2) -> Scipion's matrices (n, 4, 4). """
    q = np.asarray(quaternions, dtype=float)
    x, y, z, w = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    a = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                  [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                  [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
    shift = np.zeros((len(q), 3))
    shift[:, :2] = np.asarray(shiftAngstrom, dtype=float) / pixelSize
    matrices = np.zeros((len(q), 4, 4))
    matrices[:, :3, :3] = np.transpose(a, (2, 1, 0))
    matrices[:, :3, 3] = np.einsum('nij,nj->ni', matrices[:, :3, :3], shift)
    matrices[:, 3, 3] = 1
    return matrices


# -------------------------------- writing for the engine --------------------------------
PARTICLE_COLUMNS = {  # attribute of a Scipion particle -> column of the STAR file, format
    '_ctfModel._defocusU': ('rlnDefocusU', '%.2f'),
    '_ctfModel._defocusV': ('rlnDefocusV', '%.2f'),
    '_ctfModel._defocusAngle': ('rlnDefocusAngle', '%.3f'),
    '_ctfModel._phaseShift': ('rlnPhaseShift', '%.3f'),
    '_coordinate._micName': ('rlnMicrographName', '%s'),
    '_coordinate._x': ('rlnCoordinateX', '%.3f'),
    '_coordinate._y': ('rlnCoordinateY', '%.3f'),
    HALF_SET: ('rlnRandomSubset', '%d'),
}
COLUMN_DEFAULTS = {'_ctfModel._phaseShift': 0.0}  # no phase plate
ACQUISITION_COLUMNS = ['_acquisition._voltage', '_acquisition._sphericalAberration',
                       '_acquisition._amplitudeContrast']
# of a particle that was read from RELION
OPTICS_GROUP = '_rlnOpticsGroup'
# columns of RELION's optics table that the engine applies, or warns of, and Scipion has no attributes for
RELION_OPTICS_LABELS = ['rlnBeamTiltX', 'rlnBeamTiltY', 'rlnOddZernike', 'rlnEvenZernike',
                         'rlnMagMat00', 'rlnMagMat01', 'rlnMagMat10', 'rlnMagMat11', 'rlnMtfFileName']


def writeParticlesStar(particles, starFile, stackFolder=None, withPoses=True):
    """ Writes the enabled particles of a set as a STAR file (RELION 3.1) for the engine; returns how many.

    Image paths are absolute; the particle's id is in rlnParticleId. Stacks that are no MRC files are copied as such
    to ``stackFolder``. Poses are written where the set has projection alignment and ``withPoses``.
    """
    withPoses = withPoses and particles.hasAlignmentProj()
    names = ['id', 'enabled', '_index', '_filename', *PARTICLE_COLUMNS, *ACQUISITION_COLUMNS, OPTICS_GROUP]
    columns = readColumns(particles, names + (['_transform._matrix'] if withPoses else []))
    enabled = columns.pop('enabled')
    if not all(enabled):
        columns = {name: [x for x, keep in zip(column, enabled) if keep] for name, column in columns.items()}
    ids = columns['id']
    if not ids:
        raise ValueError('The set has no enabled particles.')
    groups, optics = _opticsGroups(particles, columns)
    table = {'rlnImageName': ('%s', _imageNames(columns, stackFolder)),
             'rlnParticleId': ('%d', ids),
             'rlnOpticsGroup': ('%d', groups)}
    for attribute, (label, fmt) in PARTICLE_COLUMNS.items():
        column = columns.get(attribute)
        if column is not None and attribute in COLUMN_DEFAULTS:
            column = [COLUMN_DEFAULTS[attribute] if x is None else x for x in column]
        # a STAR column needs a value in every row: what some particles lack is left out
        if column is not None and not any(x is None for x in column):
            table[label] = (fmt, [x.replace(' ', '_') for x in column] if fmt == '%s' else column)
    if withPoses:
        table.update(_poseColumns(columns['_transform._matrix'], ids, particles.getSamplingRate()))
    with open(starFile, 'w') as star:
        _writeLoop(star, 'optics', _opticsTable(particles, optics))
        _writeLoop(star, 'particles', table)
    return len(ids)


def _imageNames(columns, stackFolder):
    """ index@path with absolute paths of MRC stacks. """
    paths = {name: _mrcStack(name, stackFolder) for name in set(columns['_filename'])}
    return ['%06d@%s' % (index or 1, paths[name]) for index, name in zip(columns['_index'], columns['_filename'])]


def validateStack(fileName):
    """ Problems of the file of an image. """
    path = _stackPath(fileName)
    return ['STAR files cannot hold paths with spaces: %s. Rename the folder or file.' % path] if ' ' in path else []


def _stackPath(fileName):
    return os.path.abspath(fileName.split(':')[0])


def _mrcStack(fileName, stackFolder):
    problems, path = validateStack(fileName), _stackPath(fileName)
    if problems:
        raise ValueError(problems[0])
    if os.path.splitext(path)[1].lower() in MRC_EXTENSIONS:
        return path
    copy = os.path.join(os.path.abspath(stackFolder), fileName.replace(os.sep, '_') + '.mrcs')
    if not os.path.exists(copy):
        os.makedirs(stackFolder, exist_ok=True)
        temporary = copy + '.tmp.mrcs'
        ImageHandler().convertStack(fileName, temporary)
        os.replace(temporary, copy)
    return copy


def _opticsGroups(particles, columns):
    """ The group (1, 2, ...) of each particle and, in the order of groups, their distinct (kV, mm, amplitude contrast)
    and the numbers of RELION's optics groups that they were; None for a set that was not read from RELION. """
    setValues = particles.getAcquisition()
    fallback = (setValues.getVoltage(), setValues.getSphericalAberration(), setValues.getAmplitudeContrast())
    n = len(columns['id'])
    perParticle = zip(columns.get(OPTICS_GROUP) or [None] * n,
                      *(columns.get(name) or [None] * n for name in ACQUISITION_COLUMNS))
    groups, optics = [], {}
    for number, *values in perParticle:
        values = tuple(default if value is None else value for value, default in zip(values, fallback))
        groups.append(optics.setdefault((number, values), len(optics) + 1))
    return groups, list(optics)


def _opticsTable(particles, optics):
    n, values = len(optics), [each for _, each in optics]
    table = {'rlnOpticsGroupName': ('%s', ['opticsGroup%d' % (i + 1) for i in range(n)]),
             'rlnOpticsGroup': ('%d', range(1, n + 1)),
             'rlnVoltage': ('%.4f', [each[0] for each in values]),
             'rlnSphericalAberration': ('%.4f', [each[1] for each in values]),
             'rlnAmplitudeContrast': ('%.4f', [each[2] for each in values]),
             'rlnImagePixelSize': ('%.6f', [particles.getSamplingRate()] * n),
             'rlnImageSize': ('%d', [particles.getXDim()] * n),
             'rlnImageDimensionality': ('%d', [2] * n)}
    for label, ofGroup in _aberrations(particles).items():
        # Scipion's import keeps the table, but not the groups of the particles: no matter where all have the same values
        same = len(set(ofGroup.values())) == 1
        values = [next(iter(ofGroup.values())) if same else ofGroup.get(number) for number, _ in optics]
        if None not in values:
            table[label] = ('%s', values)
        else:
            logger.warning('%s differs between the optics groups of RELION and is not applied: the particles have lost '
                           'their groups (at import, for example).', label)
    return table


def _aberrations(particles):
    """ Label -> RELION's optics group -> value, from the table that scipion-em-relion keeps as text with the set. """
    info = getattr(particles.getAcquisition(), 'opticsGroupInfo', None)
    if info is None or info.get() is None:
        return {}
    table = Table()
    table.readStar(io.StringIO(info.get()), tableName='optics')
    rows = {int(row.rlnOpticsGroup): row._asdict() for row in table}
    return {label: {number: row[label] for number, row in rows.items()}
            for label in RELION_OPTICS_LABELS if all(label in row for row in rows.values())}


def _poseColumns(texts, ids, pixelSize):
    missing = [str(i) for i, text in zip(ids, texts) if text is None]
    if missing:
        raise ValueError('The set claims orientations, but particles %s have none.' % ', '.join(missing[:10]))
    angles, shift = transformsToRelion(np.array([json.loads(text) for text in texts]))
    columns = dict(zip(('rlnAngleRot', 'rlnAngleTilt', 'rlnAnglePsi'), angles.T))
    columns.update(zip(('rlnOriginXAngst', 'rlnOriginYAngst'), (shift * pixelSize).T))
    return {label: ('%.6f', column.tolist()) for label, column in columns.items()}


def _writeLoop(star, block, table):
    """ One table of a STAR file; table: label -> (format, values). """
    star.write('\n# version 30001\n\ndata_%s\n\nloop_\n' % block)
    star.writelines('_%s #%d\n' % (label, i) for i, label in enumerate(table, start=1))
    row = ' '.join(fmt for fmt, _ in table.values()) + '\n'
    star.writelines(row % values for values in zip(*(values for _, values in table.values())))
    star.write('\n')


def writeReferenceMap(volume, mapFile):
    """ Writes a Scipion volume as an MRC map whose header tells the pixel size that Scipion knows. """
    ImageHandler().convert(volume.getLocation(), mapFile)
    with mrcfile.open(mapFile, 'r+', permissive=True) as mrc:
        mrc.set_volume()
        mrc.voxel_size = volume.getSamplingRate()


# attribute of a particle -> array of the engine's results, (n,)
ENGINE_ARRAYS = {EXPECTED_ERROR: 'expected_error_deg', ERROR_BOUND: 'error_bound_deg', STATE: 'state',
                 MINOR_STATE_PROBABILITY: 'minor_state_probability',
                 PARTICLE_PROBABILITY: 'particle_probability', FIGURE_OF_MERIT: 'figure_of_merit',
                 MATCH_SCORE: 'match_score', EXPECTED_SHIFT_ERROR: 'expected_shift_error_angstrom',
                 SHIFT_ERROR_BOUND: 'shift_error_bound_angstrom'}
DISPERSION_ARRAYS = {DISPERSION_MAX: 'dispersion_max', DISPERSION_TRACE: 'dispersion_trace',
                     DISPERSION_WIGNER: 'dispersion_wigner'}


def writePosterior(particles, posteriorFile):
    """ Writes what the enabled particles of a set know of themselves as the engine's orientation_posterior.npz; returns
    their ids (n,). """
    names = {**ENGINE_ARRAYS, **DISPERSION_ARRAYS}
    ids, values = readAttributes(particles, [*names, REASON, ALTERNATIVE, CENTRE_X, CENTRE_Y])
    arrays = {names[name]: column for name, column in values.items() if name in names}
    if REASON in values:
        unknown = np.full(len(ids), np.nan)
        centre = np.stack([values.get(CENTRE_X, unknown), values.get(CENTRE_Y, unknown)], axis=1)
        isOff = values[REASON] == OFF_CENTRE
        arrays.update(reason=values[REASON], quaternion=_views(particles, len(ids)),
                      recentre_shift_angstrom=np.where(isOff[:, None], centre, np.nan),
                      alternative_quaternion=_alternativeQuaternions(values.get(ALTERNATIVE, [NO_REASON] * len(ids))))
    np.savez(posteriorFile, particle_id=ids, **arrays)
    return ids


def _views(particles, n):
    """ Quaternions (n, 4) of the enabled particles. Where the set has lost its orientations all are alike: the engine
    then knows one view, so that it has no rare views to protect. """
    if not particles.hasAlignmentProj():
        return np.tile([0., 0., 0., 1.], (n, 1))
    columns = readColumns(particles, ['enabled', '_transform._matrix'])
    return transformsToQuaternions([json.loads(text) for text, enabled in zip(columns['_transform._matrix'],
                                                                              columns['enabled']) if enabled])


# -------------------------------- reading results --------------------------------
def readIds(starFile):
    """ Particle ids of a STAR file of the engine, in its order; none where there is no such file. """
    if not os.path.exists(starFile):
        return []
    return [int(row.rlnParticleId) for row in Table.iterRows('particles@%s' % starFile)]


def readReasons(starFile):
    """ dict particle id -> why it was rejected, from the engine's rejected.star. """
    return {int(row.rlnParticleId): str(row.rlnCryoforumReason)
            for row in Table.iterRows('particles@%s' % starFile)} if os.path.exists(starFile) else {}


@dataclass(frozen=True)
class Predictions:
    """ What the engine found: matrices (n, 4, 4) as Scipion stores them, and attribute name -> (n,) values. """
    ids: np.ndarray
    matrices: np.ndarray
    attributes: Dict[str, np.ndarray]

    def rowOf(self, wantedIds):
        """ dict particle id -> row. An id of ``wantedIds`` without a result, or any id with two, is an error. """
        rows = {int(i): row for row, i in enumerate(self.ids)}
        if len(rows) != len(self.ids):
            raise ValueError('The results hold %d particles twice; ids must be unique.' % (len(self.ids) - len(rows)))
        missing = [str(i) for i in wantedIds if int(i) not in rows]
        if missing:
            raise ValueError('%d of %d particles have no result (ids %s%s). The input set must not change between '
                             'conversion and output: run the protocol again with Restart.'
                             % (len(missing), len(wantedIds), ', '.join(missing[:10]),
                                ', ...' if len(missing) > 10 else ''))
        return rows


def readPredictions(posteriorFile, pixelSize):
    """ Reads orientation_posterior.npz, arrays of numbers only. pixelSize: of the particles, Angstrom. """
    with np.load(posteriorFile, allow_pickle=False) as arrays:
        # the dispersions are the network's own; refined orientations come with the eigenvalues of their matching
        eigenvalues = arrays['network_eigenvalues' if 'network_eigenvalues' in arrays else 'eigenvalues']
        spacing = np.diff(eigenvalues.astype(float), axis=1)
        attributes = {name: np.asarray(arrays[array], dtype=float) for name, array in ENGINE_ARRAYS.items()
                      if array in arrays}
        attributes.update(_dispersions(spacing))
        attributes.update(_centres(arrays))
        texts = {} if 'reason' not in arrays else {
            REASON: arrays['reason'].astype(str), ALTERNATIVE: _alternativeTexts(arrays['alternative_quaternion'])}
        ids = np.array([int(i) for i in arrays['particle_id']], dtype=np.int64)
        matrices = quaternionsToTransforms(arrays['quaternion'], arrays['shift_angstrom'], pixelSize)
    # a network alone matches nothing: its results have no match score
    attributes = {name: values for name, values in attributes.items() if not np.isnan(values).all()}
    for name, values in list(attributes.items()) + [('orientation', matrices)]:
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if len(bad):
            raise ValueError('%s is not finite for %d particles (ids %s); cryoforum must give every particle a value.'
                             % (name, len(bad), ', '.join(str(ids[i]) for i in bad[:10])))
    return Predictions(ids, matrices, {**attributes, **texts})


def _alternativeTexts(quaternions):
    """ "rot tilt psi" in degrees of quaternions (n, 4), "none" where there is none. """
    known = np.isfinite(quaternions).all(axis=1)
    texts = np.full(len(quaternions), NO_REASON, dtype=object)
    if known.any():
        angles, _ = transformsToRelion(quaternionsToTransforms(quaternions[known], np.zeros((known.sum(), 2)), 1))
        texts[known] = ['%.2f %.2f %.2f' % tuple(row) for row in angles]
    return texts.astype(str)


def _alternativeQuaternions(texts):
    """ The other way round: (n, 4), NaN where there is none. """
    known = np.array([text != NO_REASON for text in texts])
    quaternions = np.full((len(texts), 4), np.nan)
    if known.any():
        quaternions[known] = _quaternionsOf(np.array([text.split() for text in np.asarray(texts)[known]], dtype=float))
    return quaternions


def _quaternionsOf(angles):
    """ RELION's rot, tilt, psi in degrees (n, 3) -> quaternions (n, 4), xyzw, of A, which turns the other way round. """
    half = 0.5 * np.deg2rad(angles)
    difference, total = half[:, 2] - half[:, 0], half[:, 2] + half[:, 0]
    sine, cosine = np.sin(half[:, 1]), np.cos(half[:, 1])
    return np.stack([-sine * np.sin(difference), -sine * np.cos(difference), -cosine * np.sin(total),
                     cosine * np.cos(total)], axis=1)


def _centres(arrays):
    """ Where each particle is: its own shift, or the one that recentres it where it was found off-centre. """
    if 'recentre_shift_angstrom' not in arrays:
        return {}
    recentre = arrays['recentre_shift_angstrom']
    x, y = np.where(np.isfinite(recentre), recentre, arrays['shift_angstrom']).astype(float).T
    return {CENTRE_X: x, CENTRE_Y: y}


def readFsc(csvFile):
    """ Spatial frequencies (1/Angstrom) and correlations of the engine's fsc.csv, as lists. """
    columns = np.genfromtxt(csvFile, delimiter=',', names=True)
    frequencies = np.where(columns['shell'] > 0, 1 / columns['resolution_angstrom'], 0)
    return frequencies.tolist(), columns['fsc'].tolist()


def _dispersions(spacing):
    """ The three measures of Chung (2023) from the spacings (n, 3) of the ascending eigenvalues; lower is surer.

    Chung 2023: largest dispersion, sum of dispersions, and Wigner log-likelihood of the spacings.
    """
    positive = np.maximum(spacing, np.finfo(np.float32).tiny)
    return {DISPERSION_MAX: -spacing[:, 0],
            DISPERSION_TRACE: -np.cumsum(spacing, axis=1).sum(axis=1),
            DISPERSION_WIGNER: (np.log(positive) - 0.25 * np.pi * positive ** 2).sum(axis=1)}


def readPoses(starFile, pixelSize):
    """ Poses without uncertainties, from a STAR file of the engine. pixelSize: of the particles, Angstrom. """
    rows = list(Table.iterRows('particles@%s' % starFile))
    angles = np.array([[row.rlnAngleRot, row.rlnAngleTilt, row.rlnAnglePsi] for row in rows], dtype=float)
    shift = np.array([[row.rlnOriginXAngst, row.rlnOriginYAngst] for row in rows], dtype=float)
    ids = np.array([int(row.rlnParticleId) for row in rows], dtype=np.int64)
    return Predictions(ids, quaternionsToTransforms(_quaternionsOf(angles), shift, pixelSize), {})


def readHalfSets(starFile):
    """ dict particle id -> 1 or 2, the engine's half sets (rlnRandomSubset); None where its particles have none. """
    rows = Table.iterRows('particles@%s' % starFile)
    halves = {}
    for row in rows:
        if not hasattr(row, 'rlnRandomSubset'):
            return None
        halves[int(row.rlnParticleId)] = int(row.rlnRandomSubset)
    return halves


def copyWithPredictions(particles, output, predictions, halfSets=None):
    """ Fills ``output`` with the enabled particles: everything they had, the new pose and the new attributes.

    halfSets: dict particle id -> half set, for particles that have none; those that have one keep it.
    """
    ids, known = readAttributes(particles, [HALF_SET])
    rows = predictions.rowOf(ids)
    if halfSets is not None:
        own = zip(ids.tolist(), known.get(HALF_SET, np.full(len(ids), np.nan)).tolist())
        halfSets = {**halfSets, **{i: int(half) for i, half in own if not np.isnan(half)}}
    values = {name: column.tolist() for name, column in predictions.attributes.items()}
    # of an earlier prediction that found out more
    outdated = [name for name in PARTICLE_ATTRIBUTES + [REJECTION_REASON] if name not in values]

    def update(particle, _):
        row = rows[particle.getObjId()]
        particle.setTransform(Transform(matrix=predictions.matrices[row]))
        for name, column in values.items():
            setAttribute(particle, name, column[row], String if name in TEXT_ATTRIBUTES else Float)
        for name in filter(particle.hasAttribute, outdated):
            getattr(particle, name).set(None)
        if halfSets is not None:
            setAttribute(particle, HALF_SET, halfSets[particle.getObjId()], Integer)

    output.copyInfo(particles)
    output.setAlignmentProj()
    # without a clone of each item: the iteration reuses one object, and every particle gets every attribute
    output.copyItems(reopen(particles), updateItemCallback=update, doClone=False)


def reopen(emSet):
    """ The same set read anew: an iteration without clones leaves its marks on the one object that it reuses. """
    again = type(emSet)(filename=emSet.getFileName(), prefix=emSet.getPrefix() or '')
    again.loadAllProperties()
    return again


def setAttribute(item, name, value, Class=Float):
    """ Sets ``item.name``, which the item may have already. """
    if item.hasAttribute(name):
        getattr(item, name).set(value)
    else:
        setattr(item, name, Class(value))
