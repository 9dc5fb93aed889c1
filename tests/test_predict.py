"Prediction in a lung box: the mask is on the volume's own grid, in its place, whatever the orientation."

import warnings
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch

from lungseg.phantom import LABELS, draw_phantom
from lungseg.predict import UNSEEN, Model, predict_logits, predict_probs, segment
from lungseg.recipe import Recipe
from lungseg.slices import NoLungsWarning, Preparation, view_of
from lungseg.unet import UNet
from lungseg.volume import Volume, reordered, reordered_affine

PREPARATIONS = [
    Preparation(),
    Preparation(frame="lungs"),
    Preparation(frame="lungs", suppress="outside"),
    Preparation(suppress="outside", frame="image"),
    Preparation(frame="lungs", suppress="outside", neighbours=2),
]


class Threshold(UNet):
    "A network that calls lung what is darker than a grey: its answer is known beforehand."

    def __init__(self, grey: float):
        torch.nn.Module.__init__(self)
        self.grey = torch.nn.Parameter(torch.tensor(grey))

    def forward(self, images):
        middle = images.shape[1] // 2
        return self.grey - images[:, middle : middle + 1]


def darker_than(hu: float, prep: Preparation) -> Model:
    grey = (hu - prep.hu_min) / (prep.hu_max - prep.hu_min) * 2 - 1
    return Model(Threshold(grey).eval(), Recipe(prepare=prep), {}, "float32")


@pytest.fixture(scope="module")
def patient():
    p = draw_phantom(21, size=80, slices=26)
    return Volume(p.hu, p.affine)


def unsampled(volume, prep):
    "The preparation at the very size of the frame, so that no pixel is resampled, and the view."
    view = view_of(volume.array, prep, volume.spacing_mm)
    return replace(prep, size=view.frame.side), view


@pytest.mark.parametrize("prep", PREPARATIONS)
@pytest.mark.parametrize("batch", [1, 5, 8])
def test_the_answer_lies_where_the_question_was(patient, prep, batch):
    prep, view = unsampled(patient, prep)
    parts = predict_logits(
        darker_than(-500.5, prep), patient.array, spacing_mm=patient.spacing_mm, batch=batch
    )
    logits = torch.cat(list(parts)).numpy()
    shown = view.visible(np.ones(patient.shape, bool))
    assert np.array_equal(logits > 0, (patient.array < -500) & shown)
    assert (logits[~shown] == UNSEEN).all()


@pytest.mark.parametrize("prep", PREPARATIONS[1:3])
@pytest.mark.parametrize(
    ("order", "flips"),
    [(o, f) for o, f in product(permutations(range(3)), [(), (0,), (1, 2), (0, 1, 2)])][::3],
)
def test_the_mask_is_the_same_in_any_orientation(patient, prep, order, flips):
    prep, view = unsampled(patient, prep)
    model = darker_than(-500.5, prep)
    array = np.ascontiguousarray(reordered(patient.array, order, flips))
    other = Volume(array, reordered_affine(patient.affine, order, flips, patient.shape))
    mask = segment(model, other, clean=False)
    wanted = (patient.array < -500) & view.visible(np.ones(patient.shape, bool))
    assert mask.shape == other.shape and mask.flags.c_contiguous
    assert np.array_equal(mask, reordered(wanted, order, flips))


@pytest.mark.parametrize("prep", PREPARATIONS[1:3])
def test_a_volume_of_unknown_spacing_is_segmented_too(patient, prep):
    bare = Volume(patient.array, np.eye(4)[[2, 1, 0, 3]], {"spacing_known": False})
    prep = replace(prep, size=view_of(bare.array, prep).frame.side)
    mask = segment(darker_than(-500.5, prep), bare, clean=False)
    view = view_of(bare.array, prep)
    assert np.array_equal(mask, (bare.array < -500) & view.visible(np.ones(bare.shape, bool)))


@pytest.mark.parametrize("prep", PREPARATIONS[1:3])
def test_probabilities_outside_the_box_are_nought(patient, prep):
    prep, view = unsampled(patient, prep)
    probs = predict_probs(darker_than(-500.5, prep), patient.array, spacing_mm=patient.spacing_mm, flip=True)
    assert probs.shape == patient.shape and probs.dtype == np.float32
    assert probs[~view.visible(np.ones(patient.shape, bool))].max() < 1e-12


@pytest.mark.parametrize("prep", PREPARATIONS[1:4])
def test_a_volume_without_lungs_is_shown_whole_and_that_is_said(patient, prep):
    "A solid trunk with a dark line in it: nothing is taken for a lung, and the network still sees the line."
    hu = np.where(patient.array > -400, patient.array, np.int16(-1000))
    p = draw_phantom(21, size=80, slices=26)
    hu[np.isin(p.labels, [LABELS["lung_left"], LABELS["lung_right"], LABELS["airway"]])] = 30
    hu[13, 40, 30:34] = -900
    prep = replace(prep, size=view_of(hu, prep, patient.spacing_mm).frame.side)
    with pytest.warns(NoLungsWarning, match="no lungs found in the CT, so all of it is shown"):
        mask = segment(darker_than(-500.5, prep), Volume(hu, patient.affine), clean=False)
    assert mask[13, 40, 30:34].all()


def test_nothing_is_said_where_there_are_lungs(patient):
    prep, _ = unsampled(patient, PREPARATIONS[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segment(darker_than(-500.5, prep), patient)
