"""K-SVD by several processes: the dictionary is that of one, to the last bit.

Coding the signals is nine tenths of K-SVD, and a signal's code has the same bytes in any batch: each process codes a part of
the signals and all get all codes. Every process then updates the atoms by itself. To share the update too would take a sum over
the processes for every atom, which takes longer than it saves and rounds differently: the pursuit then chooses other atoms now
and then, and after ten iterations most atoms are others (benchmarks/README.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpcdeq.cluster.group import Team
from hpcdeq.sparse import KSvdResult, KSvdSettings, OmpResult, batch_omp, learn_dictionary


def learn_shared(own: Tensor, settings: KSvdSettings, team: Team) -> KSvdResult:
    """Learn a dictionary from the signals of all processes.

    On CPUs of one kind all processes get the same bytes, those of `learn_dictionary` with all signals. On others rank 0's
    result counts: all code with its atoms.

    Parameters
    ----------
    own
        (n, d) this process's signals; those of all, by rank, are what is learnt from. Some may have none.
    settings
        Size, sparsity, iterations and seed: the same in all processes.
    team
        The processes; all must call.

    Raises
    ------
    ValueError
        As `learn_dictionary`, in all processes.
    """

    def pursuit(signals: Tensor, dictionary: Tensor, sparsity: int) -> OmpResult:
        # Sent as rows and turned again: a matrix product may round differently in another layout.
        atoms = team.first(lambda: dictionary.T)
        codes = team.gather(batch_omp(signals[team.part(len(signals))], atoms.T, sparsity))
        return OmpResult(
            support=torch.cat([part.support for part in codes]),
            coefficients=torch.cat([part.coefficients for part in codes]),
        )

    return learn_dictionary(torch.cat(team.gather(own)), settings, pursuit)
