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
"""How cryoforum's results are shown."""

from pwem.objects import SetOfParticles
from pwem.viewers.showj import ORDER, VISIBLE
from pwem.viewers.viewers_data import RegistryViewerConfig

from ..constants import PARTICLE_ATTRIBUTES, REJECTION_REASON
from .viewer_orientations import CryoForumAbInitioViewer, CryoForumOrientationsViewer
from .viewer_subset import CryoForumSubsetViewer
from .viewer_train import CryoForumTrainViewer


def showParticleAttributes():
    """ Makes our attributes visible in Scipion's table of any set of particles that has them, beside the image. """
    config = RegistryViewerConfig.getConfig(SetOfParticles)
    ours = [*PARTICLE_ATTRIBUTES[:2], REJECTION_REASON, *PARTICLE_ATTRIBUTES[2:]]
    for key in (ORDER, VISIBLE):
        labels = [name for name in config[key].split() if name not in ours]
        after = labels.index('_filename') + 1
        config[key] = ' '.join(labels[:after] + ours + labels[after:])


showParticleAttributes()
