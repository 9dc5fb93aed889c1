"Signs of failure are found where they were made, in every orientation, and nowhere else."

import numpy as np
import pytest

from lungseg.failures import failure_signs
from lungseg.phantom import draw_phantom
from lungseg.volume import Volume, reordered, reordered_affine


@pytest.fixture(scope="module", params=range(3))
def patient(request):
    return draw_phantom(request.param, size=80, slices=28)


def reordered_axis(order, flips):
    "Where the axis from feet to head is after a reordering, and whether it rises to the head."
    new = order.index(0)
    return new, -1 if new in flips else 1


def signs(pred, ref, volume):
    return set(failure_signs(pred, ref, volume).sign)


@pytest.mark.parametrize(
    "order, flips", [((0, 1, 2), ()), ((0, 1, 2), (0,)), ((2, 0, 1), (1, 2)), ((1, 2, 0), (0, 1))]
)
def test_signs_do_not_depend_on_how_a_volume_lies_in_memory(patient, order, flips):
    ref = patient.mask("lung_left", "lung_right")
    affine = reordered_affine(patient.affine, order, flips, ref.shape)
    pred = patient.mask("lung_left", "airway", "gas")

    def turned(array):
        return np.ascontiguousarray(reordered(array, order, flips))

    volume = Volume(turned(patient.hu), affine)
    found = failure_signs(turned(pred), turned(ref), volume)
    known = failure_signs(pred, ref, Volume(patient.hu, patient.affine))
    assert found.sign.tolist() == known.sign.tolist() and "right lung missed" in set(found.sign)
    assert found["size"].to_numpy() == pytest.approx(known["size"].to_numpy())
    axis = reordered_axis(order, flips)
    there = known.slice if axis[1] > 0 else len(patient.hu) - 1 - known.slice
    assert found.slice.tolist() == there.tolist()  # along the axis from feet to head, as it lies in memory
    assert signs(turned(ref), turned(ref), volume) == set()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("end", ["apex", "base"])
def test_a_cut_end_is_named_with_its_side_and_its_height(patient, side, end):
    lung = patient.mask(f"lung_{side}")
    height = np.flatnonzero(lung.any((1, 2)))
    cut = height[-4:] if end == "apex" else height[:4]
    pred = patient.mask("lung_left", "lung_right")
    pred[cut] &= ~lung[cut]
    found = failure_signs(pred, patient.mask("lung_left", "lung_right"), Volume(patient.hu, patient.affine))
    assert found.sign.tolist() == [f"{side} {end} cut off"]
    assert found["size"].item() == pytest.approx(4 / len(height))
    assert found.slice.item() in cut


def test_a_border_that_is_a_little_too_wide_or_narrow_is_no_failure():
    from scipy import ndimage as ndi

    patient = draw_phantom(1, size=160, slices=28)
    ref, volume = patient.mask("lung_left", "lung_right"), Volume(patient.hu, patient.affine)
    cross = ndi.generate_binary_structure(2, 1)[None]
    assert signs(ndi.binary_dilation(ref, cross), ref, volume) == set()
    assert signs(ndi.binary_erosion(ref, cross), ref, volume) == set()


@pytest.mark.parametrize("spacing", [0.8, 2.4])
def test_what_is_away_is_told_in_mm_whatever_the_pixels_are(spacing):
    ref = np.zeros((12, 60, 60), bool)
    ref[2:10, 15:45, 8:26] = ref[2:10, 15:45, 34:52] = True
    volume = Volume(
        np.where(ref, -850, 40).astype(np.int16),
        np.array([[0, 0, spacing, 0], [0, spacing, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]]),
    )
    away = int(np.ceil(5 / spacing)) + 2  # pixels that are more than 5 mm
    near, far = ref.copy(), ref.copy()
    near[5, 45 : 45 + int(5 / spacing), 10:20] = True
    far[3:9, 45 + away : 48 + away, 8:26] = True
    assert signs(near, ref, volume) == set()
    assert signs(far, ref, volume) == {"dense tissue"}


def test_a_body_of_tissue_at_the_edge_is_not_air_and_noise_without_reference_is_one_row():
    ref = np.zeros((8, 40, 40), bool)
    ref[1:7, 10:30, 4:16] = ref[1:7, 10:30, 24:36] = True
    volume = Volume(
        np.where(ref, -850, 40).astype(np.int16),
        np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]]),
    )
    edge = ref.copy()
    edge[:, :3] = True
    assert signs(edge, ref, volume) == {"dense tissue"}
    noise = np.random.default_rng(0).random(ref.shape) < 0.01
    found = failure_signs(noise, np.zeros_like(ref), volume)
    assert found.sign.tolist() == ["lung where there is none"] and np.isnan(found["size"].item())
