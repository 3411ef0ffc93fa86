"""Labels to train a router on, from folders of recorded outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from trimtab.measure.route_data import Job, check, cost_words, examples, together
from trimtab.measure.route_training import Labels
from trimtab.routing import data


def of_folders(folders: Sequence[Path], job: Job) -> Labels:
    """All prompts of the folders that both models of the job have a score for; its own folder is not read.

    Raises BadRequest that names the option, the folder, or the file and line at fault.
    """
    check(job)
    parts, notes = [], []
    for folder in folders:
        found, left_out = examples(data.read(folder), msgspec.structs.replace(job, data=folder))
        parts.append(found)
        if left_out:
            notes.append(f"{folder.name}: {left_out:,} prompts left out, a model has no score for them")
    whole = together(parts)
    second = ""
    if job.second is not None:
        second = job.second[1]
        alone = float(np.nanmean(whole.second_score))
        notes.append(f"the second model, {second}, alone scores {alone:.1%}")
    counts = [f"{folder.name} ({len(part.prompts):,} prompts)" for folder, part in zip(folders, parts, strict=True)]
    return Labels(whole, job.weak, job.strong, second, ", ".join(counts), cost_words(job.prices), tuple(notes))
