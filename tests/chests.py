"Small phantoms with masks of their lungs, as the npz files of a cohort."

from pathlib import Path

import numpy as np

from lungseg.cohort import Store, build_store, find_cases
from lungseg.phantom import draw_phantom


def write_chests(folder: Path, many: int, *, size: int = 64, slices: int = 12) -> Path:
    "Case_000 and so on, each drawn by its number; the folder is made."
    folder.mkdir()
    for seed in range(many):
        p = draw_phantom(seed, size=size, slices=slices)
        mask = p.mask("lung_left", "lung_right").astype(np.uint8)
        np.savez(folder / f"Case_{seed:03d}.npz", hu=p.hu, mask=mask)
    return folder


def store_of(volumes: Path) -> Store:
    "The store of such a folder, beside it."
    return build_store(find_cases(volumes).cases, volumes.parent / "store")
