"""Leaf memory: how many bytes merging one leaf takes, from shapes alone."""

import math

import numpy as np

from jmudsc.finetunes.job import Job, LeafPlan
from jmudsc.finetunes.on_disk import BLOCK, is_read_in_parts
from jmudsc.finetunes.piece import CHUNK


def leaf_memory(job: Job, plan: LeafPlan) -> int:
    """Return about how many bytes merging a leaf takes beside what it becomes.

    As it is stored in all models and the base; where not every entry is merged by
    itself also in float32, and matrices one after the other in float64.

    Args:
        job: the merge, of arrays or shapes.
        plan: how the leaf is merged.
    """
    donor, models = job.donor(plan.path), len(job.models)
    entries, trees = math.prod(donor.shape), models + (job.base is not None)
    stored = sum(
        math.prod(tree[plan.path].shape) * np.dtype(tree[plan.path].dtype).itemsize
        for tree in (*job.models, *([] if job.base is None else [job.base]))
    )
    if plan.copied is not None:
        return 0
    if is_read_in_parts(job, plan):
        return trees * BLOCK * np.dtype(donor.dtype).itemsize + 64 * CHUNK
    if plan.method.is_elementwise and not job.calibrate:
        return stored + 4 * (3 * trees + 8) * min(entries, CHUNK)
    copies = trees + models + 2
    if not plan.cuts_matrices:
        return stored + 4 * copies * entries
    _, rows, columns = plan.layout.sizes(tuple(donor.shape))
    apart = 8 * (copies * rows * columns + 3 * max(rows, columns) ** 2)
    return stored + 4 * trees * entries + apart
