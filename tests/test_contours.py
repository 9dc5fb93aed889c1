"""Contours against outside judges: in every orientation, every spelling of a hole, and from real files."""

import subprocess
import warnings
from itertools import permutations
from shutil import copy, which

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import generate_uid
from realdata import real
from scipy import ndimage as ndi

from lungseg.contours import (
    ContourWarning,
    between,
    chosen,
    combined,
    edge_points,
    inside,
    lung_part,
    lungs_among,
    on_path,
    outlines,
    read_rois,
    read_rtstruct,
    roi_names,
    rtstruct_mask,
    stacked_planes,
    write_rtstruct,
)
from lungseg.core import InputError, LungsegError, MaskError, SeriesError
from lungseg.phantom import LABELS, draw_phantom, write_phantom, write_series
from lungseg.phantom import write_rtstruct as write_drawn
from lungseg.volume import Volume

DATA = Tag("ContourData")
AROUND = np.linspace(0, 2 * np.pi, 90, endpoint=False)
CIRCLE = np.stack([np.sin(AROUND), np.cos(AROUND)], axis=1)
DISC = (20.1, 20.2) + 8 * CIRCLE
PLANES = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0.6, 0, -0.36, 0.48, 0.8),
    "feet first, prone": (1, 0, 0, 0, -1, 0),
}


def judged(polygons, shape, fine=1):
    "Which centres are in an odd number of polygons, as matplotlib sees it; `fine`: on a finer grid."
    rows, cols = ((np.arange(n * fine) + 0.5) / fine - 0.5 for n in shape)
    centres = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    planes = [Outline(p).contains_points(centres) for p in polygons]
    return np.logical_xor.reduce(planes).reshape(shape[0] * fine, shape[1] * fine)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def stack(
    folder, slices, shape, orientation=PLANES["axial"], spacing=(2.5, 0.8, 0.7), start=(-31.3, 12.7, 55.1)
):
    "Headers of a CT in any plane, and its volume as (slice, row, column) along its own normal."
    axes = np.reshape(orientation, (2, 3)).astype(float)
    normal = np.cross(*axes)
    files = write_series(folder, z_mm=range(slices), size=4)
    frame = generate_uid()
    for k, file in enumerate(files):
        ds = dcmread(file)
        del ds.PixelData
        ds.Rows, ds.Columns, ds.PixelSpacing = *shape, list(spacing[1:])
        ds.ImageOrientationPatient, ds.FrameOfReferenceUID = list(orientation), frame
        ds.ImagePositionPatient = [f"{v:.6f}" for v in np.array(start) + k * spacing[0] * normal]
        ds.save_as(file)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * spacing[0], axes[1] * spacing[1], axes[0] * spacing[2]], axis=1)
    affine[:3, 3] = start
    provenance = {"FrameOfReferenceUID": frame, "SeriesInstanceUID": str(dcmread(files[0]).SeriesInstanceUID)}
    return files, Volume(np.zeros((slices, *shape), np.int16), affine, provenance)


def turned(volume, mask, order, flips):
    "The same voxels in an array that runs another way."
    new_to_old = np.zeros((4, 4))
    new_to_old[3, 3] = 1
    for new, old in enumerate(order):
        new_to_old[old, new] = -1 if new in flips else 1
        new_to_old[old, 3] = volume.shape[old] - 1 if new in flips else 0
    arrays = (np.ascontiguousarray(np.flip(a.transpose(order), flips)) for a in (volume.array, mask))
    array, mask = arrays
    return Volume(array, volume.affine @ new_to_old, volume.provenance), mask


def item(**attributes):
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def contour(points, kind="CLOSED_PLANAR"):
    return item(
        ContourGeometricType=kind,
        NumberOfContourPoints=len(points),
        ContourData=[f"{v:.4f}" for v in np.ravel(points)],
    )


def structures(path, volume, rois, template):
    "A structure set with any contours, by (name, list of contours), on the header of one that is complete."
    ds = dcmread(template)
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois, 1):
        frame = volume.provenance["FrameOfReferenceUID"]
        ds.StructureSetROISequence.append(
            item(
                ROINumber=number,
                ROIName=name,
                ReferencedFrameOfReferenceUID=frame,
                ROIGenerationAlgorithm="MANUAL",
            )
        )
        ds.ROIContourSequence.append(item(ReferencedROINumber=number, ContourSequence=contours))
    ds.save_as(path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "A small axial CT, its volume, and a complete structure set on it."
    folder = tmp_path_factory.mktemp("ct")
    files, volume = stack(folder, 20, (48, 40))
    mask = np.zeros(volume.shape, bool)
    mask[5:9, 10:20, 10:20] = True
    return files, volume, write_rtstruct({"Lungs": mask}, volume, folder / "rs.dcm", ct=files)


@pytest.fixture
def drawn(plain, tmp_path):
    "Make a structure set from polygons in voxel indices: (name, [(slice, rows and columns)...])."
    _, volume, template = plain

    def draw(*rois, volume=volume):
        made = []
        for name, contours in rois:
            items = []
            for c in contours:
                if isinstance(c, Dataset):
                    items.append(c)
                    continue
                z, points, *kind = c
                items.append(
                    contour(volume.index_to_mm(np.c_[np.full(len(points), float(z)), points]), *kind)
                )
            made.append((name, items))
        return structures(tmp_path / "rs.dcm", volume, made, template)

    return draw


def quiet(path, volume, **options):
    mask, _ = rtstruct_mask(path, volume, **options)
    return mask


# Names


@pytest.mark.parametrize(
    ("names", "lungs"),
    [
        (["Esophagus", "Heart", "Lung_L", "Lung_R", "SpinalCord"], ["Lung_L", "Lung_R"]),
        (["Lung_Right", "Lung_Left"], ["Lung_Right", "Lung_Left"]),
        (["LT LUNG", "rt lung", "Total Lung"], ["LT LUNG", "rt lung"]),
        (["Lung-Left", "Lung-Right", "GTV-1", "spinal-Cord", "Lungs-Total"], ["Lung-Left", "Lung-Right"]),
        (["lung left", "Lungs-GTV", "lung right"], ["lung left", "lung right"]),
        (["L_Lung", "R_Lung"], ["L_Lung", "R_Lung"]),
        (["LungL", "LungR", "Lungs_PRV"], ["LungL", "LungR"]),
        (["LLUNG", "RLUNG"], ["LLUNG", "RLUNG"]),
        (["Lungenflügel links", "Lungenflügel rechts"], ["Lungenflügel links", "Lungenflügel rechts"]),
        (["Lunge li", "Lunge re", "Lunge gesamt"], ["Lunge li", "Lunge re"]),
        (["Poumon gauche", "Poumon droit"], ["Poumon gauche", "Poumon droit"]),
        (["POUMON_G", "POUMON_D", "Poumons"], ["POUMON_G", "POUMON_D"]),
        (["Pulmón izquierdo", "Pulmón derecho"], ["Pulmón izquierdo", "Pulmón derecho"]),
        (["Pulmon_I", "Pulmon_D"], ["Pulmon_I", "Pulmon_D"]),
        (["Pulmao_E", "Pulmao_D"], ["Pulmao_E", "Pulmao_D"]),
        (["pulmão esquerdo", "pulmão direito"], ["pulmão esquerdo", "pulmão direito"]),
        (["Polmone sx", "Polmone dx"], ["Polmone sx", "Polmone dx"]),
        (["Polmone destro", "Polmone sinistro"], ["Polmone destro", "Polmone sinistro"]),
        (["long links", "long rechts"], ["long links", "long rechts"]),
        (["pluco_L", "pluco_P"], ["pluco_L", "pluco_P"]),
        (["Lunga_V", "Lunga_H"], ["Lunga_V", "Lunga_H"]),
        (["左肺", "右肺"], ["左肺", "右肺"]),
        (["Левое легкое", "Правое лёгкое"], ["Левое легкое", "Правое лёгкое"]),
        (["LUNGS"], ["LUNGS"]),
        (["Pulmones", "PTV"], ["Pulmones"]),
        (["Both Lungs", "Lung_L"], ["Both Lungs"]),
        (["Lung_L"], ["Lung_L"]),
        (["Lung_L", "Lung_L_PRV05", "Lung_R-GTV"], ["Lung_L"]),
        (["Lung_LUL", "Lung_LLL", "Lung_R"], ["Lung_LUL", "Lung_LLL", "Lung_R"]),
        (["LUL", "LLL", "RUL", "RML"], ["LUL", "LLL"]),
        (["lung_upper_lobe_left", "lung_lower_lobe_right"], []),
        (["BODY", "PTV", "Heart"], []),
        ([], []),
    ],
)
def test_lungs_are_found_among_names(names, lungs):
    assert lungs_among(names) == lungs


@pytest.mark.parametrize(
    "name",
    "Lungs-GTV|Lungs - PTV|Lungs minus PTV|Lung_L_PRV|Lung_L_PRV05|ITV lung|lung tumor|Lung tumour L|Lobe|"
    "Lung lobe|zLungs|~Lung_L|Lung~_R|Lung_L-Lung_R|GTV_Lung|Lung_eval|Lung ring|Lung_L_T50|Lungs 4D 30%|"
    "lungs_not_ptv|Lunge ohne GTV|Poumons-PTV|IPSILATERAL LUNG|Lung nodule|Lung_opt|lung cancer|Lung block|"
    "Heart|PTV lung L|External|Lung_Artery_L| |"
    "Lung_L_2|lingula|plunge|along|longissimus|belong L|Sublingual|cord|Lung apex L".split("|"),
)
def test_what_only_sounds_like_a_lung_is_none(name):
    assert lung_part(name) is None
    assert lungs_among([name]) == []


def test_one_side_is_never_called_lungs():
    for names, side in ((["Lung_L", "Heart"], "left"), (["RUL", "RML", "RLL"], "right")):
        with pytest.raises(MaskError, match=f"only the {side} lung"):
            chosen(names, None, "rs.dcm")
    assert chosen(["Lung_L", "Heart"], "Lung_L", "rs.dcm") == ["Lung_L"]
    assert chosen(["Lung_L", "Heart"], ["heart ", "Lung_L"], "rs.dcm") == ["Heart", "Lung_L"]


# Polygons


def test_filling_agrees_with_matplotlib_on_random_polygons():
    random = np.random.default_rng(5)
    for n in [*range(3, 20), 200, 800]:
        polygon = random.uniform(-6, 38, (n, 2))  # crosses itself, and leaves the plane
        by_winding = inside(polygon, (32, 30))
        centres = np.argwhere(np.ones((32, 30), bool))
        a, b = polygon, np.roll(polygon, -1, axis=0)
        crossed = np.zeros(len(centres), int)
        for (r0, c0), (r1, c1) in zip(
            a, b, strict=True
        ):  # the even-odd rule, one edge and one centre at a time
            if r0 == r1:
                continue
            spans = (centres[:, 0] >= min(r0, r1)) & (centres[:, 0] < max(r0, r1))
            crossed += spans & (c0 + (centres[:, 0] - r0) * (c1 - c0) / (r1 - r0) <= centres[:, 1])
        assert np.array_equal(by_winding.ravel(), crossed % 2 == 1)
    for _ in range(30):
        convex = random.uniform(8, 20, 2) + CIRCLE * random.uniform(0.3, 9, 2) @ np.diag([1, 1])
        assert np.array_equal(inside(convex, (32, 30)), judged([convex], (32, 30)))


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.8, 2.5])
def test_areas_are_not_biased_even_below_a_voxel(radius):
    random = np.random.default_rng(1)
    counts = [combined([5 + random.random(2) + radius * CIRCLE], (12, 12)).sum() for _ in range(900)]
    area = radius**2 * 45 * np.sin(2 * np.pi / 90)
    assert abs(np.mean(counts) - area) < 4 * np.std(counts) / np.sqrt(900) + 1e-4


def test_masks_do_not_move():
    random = np.random.default_rng(2)
    shifts = []
    for _ in range(200):
        centre = 15 + random.random(2)
        shifts.append(np.argwhere(inside(centre + 9.3 * CIRCLE, (32, 32))).mean(0) - centre)
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.02


def test_centres_on_the_path_belong_to_it():
    border = np.array([[4.0, 4], [4, 9], [9, 9], [9, 4]])
    assert combined([border], (14, 14)).sum() == 36
    assert (
        len(np.unique(on_path(np.array([[2.0, 2], [8, 5]])), axis=0)) == 4
    )  # slope one half: every second row
    line = np.array([[3.0, 2], [3.0, 7], [3.0, 2]])  # what tools write around a row of single voxels
    assert np.array_equal(np.argwhere(combined([line], (14, 14))), [[3, c] for c in range(2, 8)])


def test_keyhole_and_both_kinds_of_xor_are_the_same_ring():
    middle = np.array([16.2, 15.9])
    outer, hole, island = (middle + r * CIRCLE for r in (13, 8, 3))
    keyhole = np.concatenate([outer, outer[:1], hole[:1], hole[:0:-1], hole[:1]])
    ring = judged([outer, hole], (32, 32))
    for polygons, xor in (([keyhole], False), ([outer, hole], False), ([hole, outer[::-1]], True)):
        assert np.array_equal(combined(polygons, (32, 32), xor=xor), ring)
    for order in permutations([outer, hole, island]):
        assert np.array_equal(combined(list(order), (32, 32)), ring | judged([island], (32, 32)))
    assert np.array_equal(combined([keyhole, island], (32, 32)), ring | judged([island], (32, 32)))


def test_polygons_that_overlap_in_part_are_united_unless_the_file_says_xor():
    a, b, c = (np.array(at) + 7 * CIRCLE for at in ((9.1, 9.2), (16.3, 12.1), (22.2, 20.3)))
    union = np.logical_or.reduce([judged([p], (32, 32)) for p in (a, b, c)])
    for order in permutations([a, b, c]):
        assert np.array_equal(combined(list(order), (32, 32)), union)
    assert np.array_equal(combined([a, b], (32, 32), xor=True), judged([a, b], (32, 32)))
    twice = [a, np.roll(a[::-1], 7, axis=0)]
    assert np.array_equal(combined(twice, (32, 32)), judged([a], (32, 32)))
    assert not combined(twice, (32, 32), xor=True).sum() - len(on_path(a)) > 0


def test_a_hole_that_pokes_out_a_little_leaves_no_spur():
    outer, hole = np.array([16.1, 16.2]) + 10 * CIRCLE, np.array([16.1, 22.4]) + 4.1 * CIRCLE
    assert not (combined([outer, hole], (32, 32)) & ~judged([outer], (32, 32))).any()


@pytest.mark.parametrize("smooth", [0, 0.6, 1.5])
def test_outlines_give_every_voxel_back_to_every_kind_of_reader(smooth):
    random = np.random.default_rng(8)
    for share in np.linspace(0.02, 0.98, 9):
        noise = ndi.gaussian_filter(random.random((21, 23)), smooth)
        plane = noise > np.quantile(noise, share)
        polygons = outlines(plane)
        filled = [inside(p, plane.shape) for p in polygons]
        assert np.array_equal(combined(polygons, plane.shape), plane)
        assert np.array_equal(np.logical_or.reduce(filled), plane)  # one polygon painted over the other
        assert np.array_equal(np.logical_xor.reduce(filled), plane)  # every polygon combined by exclusive-or
        assert np.array_equal(
            np.logical_or.reduce([judged([p], plane.shape) for p in polygons]), plane
        )  # by winding
        assert not sum(len(on_path(p)) for p in polygons)


# Between planes


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("apart", [0.4, 1.0, 2.5, 3.0])
def test_a_cone_keeps_its_volume_on_any_distance_of_planes(apart, offset):
    places = np.arange(5 + offset, 31, apart)
    polygons = [[(20.3, 20.1) + (18 - z / 2) * CIRCLE] for z in places]
    planes = [inside(p, (41, 41)) for (p,) in polygons]
    mask = stacked_planes(planes, polygons, places, 40, apart)
    true = np.stack([inside((20.3, 20.1) + (18 - z / 2) * CIRCLE, (41, 41)) for z in range(35)])
    assert abs(mask.any((1, 2)).sum() - apart * len(places)) <= 1
    assert dice(mask[7:29], true[7:29]) > 0.99
    assert abs(mask[7:29].sum() / true[7:29].sum() - 1) < 0.005


def test_gaps_stay_open_and_ends_reach_half_a_slab():
    polygon = np.array([[1.2, 1.2], [1.2, 4.2], [4.2, 4.2], [4.2, 1.2]])
    plane = inside(polygon, (6, 6))
    mask = stacked_planes([plane] * 6, [[polygon]] * 6, np.array([6.0, 9, 12, 21, 24, 27]), 40, 3.0)
    assert np.flatnonzero(mask.any((1, 2))).tolist() == [*range(5, 14), *range(20, 29)]
    half_way = stacked_planes([plane], [[polygon]], np.array([5.5]), 40, 1.0)
    assert np.flatnonzero(half_way.any((1, 2))).tolist() == [5]


def test_shapes_in_two_places_do_not_meet():
    a, b = np.zeros((2, 20, 20), bool)
    a[2:6, 2:6], b[14:18, 14:18] = True, True
    edges = [edge_points(outlines(p), p) for p in (a, b)]
    assert not between(a, b, edges, 0.5).any()
    assert np.array_equal(between(a, a, edges[:1] * 2, 0.3), a)


def test_contours_drawn_every_three_mm_fill_slices_of_one_mm(tmp_path):
    thin_files, thin = stack(tmp_path / "thin", 60, (48, 48), spacing=(1.0, 1.0, 1.0))
    frame = thin.provenance["FrameOfReferenceUID"]
    z, r, c = np.indices((20, 48, 48))
    shape = ((3 * z - 27) / 20) ** 2 + ((r - 22) / 15) ** 2 + ((c - 25) / 12) ** 2 < 1
    affine = thin.affine @ np.diag([3.0, 1, 1, 1])
    thick = Volume(np.zeros((20, 48, 48), np.int16), affine, {"FrameOfReferenceUID": frame})
    path = write_rtstruct({"Lungs": shape}, thick, tmp_path / "rs.dcm", ct=thin_files[::3])
    z, r, c = np.indices(thin.shape)
    true = ((z - 27) / 20) ** 2 + ((r - 22) / 15) ** 2 + ((c - 25) / 12) ** 2 < 1
    mask = read_rtstruct(path, thin)
    assert np.array_equal(mask[::3], shape)
    assert dice(mask, true) > 0.98
    assert mask[8:47].any((1, 2)).all()


def test_a_few_voxels_on_every_second_slice_are_not_joined(plain, tmp_path):
    files, volume, _ = plain
    mask = np.zeros(volume.shape, bool)
    mask[[3, 5], 10:14, 10:14] = True
    path = write_rtstruct({"Lungs": mask}, volume, tmp_path / "rs.dcm", ct=files)
    assert np.array_equal(quiet(path, volume), mask)


def test_an_open_gap_is_said(drawn, plain):
    contours = [(z, DISC) for z in (2, 3, 4, 5, 6, 11, 12, 13)]
    with pytest.warns(ContourWarning, match="1 gap of up to 12.5 mm .* 2.5 mm apart elsewhere, left open"):
        mask = read_rtstruct(drawn(("Lungs", contours)), plain[1])
    assert not mask[7:11].any()


def test_where_the_volume_was_mended_its_contours_are_too(drawn, plain, tmp_path):
    files, volume, _ = plain
    mended = Volume(volume.array, volume.affine, {**volume.provenance, "corrected": ["1 missing slice"]})
    path = drawn(("Lungs", [(z, DISC) for z in (2, 3, 4, 5, 6, 8, 9, 10)]))
    assert not quiet(path, volume)[7].any()
    mask = quiet(path, mended)
    assert np.array_equal(mask[7], mask[6])
    with pytest.raises(MaskError, match=r"plane 7 of the mask, .* lies on no slice of the CT"):
        write_rtstruct({"Lungs": mask}, volume, tmp_path / "out.dcm", ct=files[:7] + files[8:])
    out = write_rtstruct({"Lungs": mask}, mended, tmp_path / "out.dcm", ct=files[:7] + files[8:])
    assert np.array_equal(quiet(out, mended), mask)


# There and back


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_every_voxel_comes_back_in_every_orientation(plane, order, tmp_path):
    files, volume = stack(tmp_path / "ct", 5, (14, 11), PLANES[plane])
    random = np.random.default_rng(4)
    noise = ndi.gaussian_filter(random.random(volume.shape), 0.8)
    mask = noise > np.median(noise)
    mask[3] ^= random.random(mask[3].shape) < 0.1  # voxels alone, holes of one voxel
    for flips in ((0,), (1, 2)):
        own, lies = turned(volume, mask, order, flips)
        path = write_rtstruct({"Lungs": lies}, own, tmp_path / "rs.dcm", ct=files[::-1])
        assert np.array_equal(read_rtstruct(path, own), lies)
        assert np.array_equal(read_rtstruct(path, volume), mask)
    where = [float(p) for f in files for p in dcmread(f).ImagePositionPatient]
    normal = np.cross(*np.reshape(PLANES[plane], (2, 3)))
    there = np.reshape(where, (-1, 3)) @ normal
    for one in read_rois(path)[0].contours:  # on the slices' own planes, to the last decimal
        assert np.abs(there[:, None] - one @ normal).min(axis=0).max() < 2e-3


def test_lungs_with_holes_at_full_size_come_back_and_a_second_reader_agrees(tmp_path):
    phantom = draw_phantom(seed=2, size=128, slices=4)
    lungs = np.isin(phantom.labels, [LABELS["lung_left"], LABELS["lung_right"]]).astype(np.float32)
    lungs = ndi.gaussian_filter(ndi.zoom(lungs, (1, 4, 4), order=1), (0, 1, 1)) > 0.5
    random = np.random.default_rng(0)
    for z, r, c in random.permutation(np.argwhere(ndi.binary_erosion(lungs)))[:60]:
        row, col = np.ogrid[:512, :512]
        lungs[z] &= (row - r) ** 2 + (col - c) ** 2 >= random.integers(0, 12) ** 2
        lungs[z, r, c] ^= True
    files, volume = stack(tmp_path / "ct", 4, (512, 512))
    path = write_rtstruct({"Lungs": lungs}, volume, tmp_path / "rs.dcm", ct=files)
    assert np.array_equal(quiet(path, volume), lungs)
    k = int(lungs.sum((1, 2)).argmax())
    indices = [volume.mm_to_index(c) for c in read_rois(path)[0].contours]
    polygons = [i[:, 1:] for i in indices if round(float(i[0, 0])) == k]
    low = np.min([p.min(0) for p in polygons], axis=0).astype(int) - 1
    high = np.max([p.max(0) for p in polygons], axis=0).astype(int) + 2
    part = lungs[k, low[0] : high[0], low[1] : high[1]]
    assert dice(judged([p - low for p in polygons], part.shape), part) == 1
    fine = judged([p - low for p in polygons], part.shape, fine=3)
    assert dice(fine, np.kron(part, np.ones((3, 3), bool))) > 0.98  # corners are cut by an eighth of a voxel


def test_contours_of_another_hand_read_as_they_were_drawn(tmp_path):
    phantom = draw_phantom(seed=6, size=128, slices=16)
    files = write_phantom(phantom, tmp_path / "ct")
    path = write_drawn(phantom, files, tmp_path / "rs.dcm")
    frame = str(dcmread(files[0], stop_before_pixels=True).FrameOfReferenceUID)
    chest = Volume(phantom.hu, phantom.affine, {"FrameOfReferenceUID": frame})
    for side in ("left", "right"):
        lung = phantom.labels == LABELS[f"lung_{side}"]
        assert dice(read_rtstruct(path, chest, roi=f"Lung_{side[0].upper()}"), lung) > 0.995
    assert np.array_equal(
        read_rtstruct(path, chest),
        read_rtstruct(path, chest, roi="Lung_L") | read_rtstruct(path, chest, roi="Lung_R"),
    )


# What files bring


def test_contours_of_a_coronal_reformat_lie_right_on_an_axial_volume(drawn, plain):
    _, volume, _ = plain
    r, c = np.indices((20, 40))
    items = []
    for row in range(10, 31):
        radius = (12**2 - (row - 20) ** 2) ** 0.5 + 0.31
        index = np.c_[10.1 + radius / 3 * CIRCLE[:, 0], np.full(90, float(row)), 18.2 + radius * CIRCLE[:, 1]]
        items.append(contour(volume.index_to_mm(index)))
    mask = read_rtstruct(drawn(("Lungs", items)), volume)
    radius = 12.31
    assert np.array_equal(mask[:, 20], ((r - 10.1) * 3 / radius) ** 2 + ((c - 18.2) / radius) ** 2 < 1)
    assert not mask[:, :10].any() and not mask[:, 31:].any()


def test_contours_across_the_planes_are_refused(drawn, plain):
    _, volume, _ = plain
    index = np.c_[10 + 4 * CIRCLE[:, 0], 20 + 9 * CIRCLE[:, 0], 20 + 9 * CIRCLE[:, 1]]
    with pytest.raises(MaskError, match=r"ROI 1 \(Lungs\), contour 1 .* leaves its slice by .* mm, expected"):
        read_rtstruct(drawn(("Lungs", [contour(volume.index_to_mm(index))])), volume)


def test_points_and_lines_are_ignored_and_counted(drawn, plain):
    _, volume, _ = plain
    disc = DISC
    odd = [
        (3, disc[:1], "POINT"),
        (4, disc[:1], "POINT"),
        (3, disc[:9], "OPEN_PLANAR"),
        (3, disc[:9], "SPLINE"),
    ]
    path = drawn(("Lungs", [(5, disc), *odd]))
    with pytest.warns(ContourWarning, match="1 OPEN_PLANAR, 2 POINT, 1 of unknown type"):
        mask = read_rtstruct(path, volume)
    assert np.array_equal(mask[5], judged([disc], (48, 40))) and mask.any((1, 2)).sum() == 1
    with pytest.raises(MaskError, match=r"ROI 1 \(Lungs\): no closed contour"):
        read_rtstruct(drawn(("Lungs", odd)), volume, roi="Lungs")


def test_contours_outside_are_said_and_those_inside_are_right(drawn, plain):
    _, volume, _ = plain
    disc = np.array([5.0, 35.0]) + 8.3 * CIRCLE
    with pytest.warns(ContourWarning) as said:
        mask = read_rtstruct(drawn(("Lungs", [(z, disc) for z in range(-3, 4)])), volume)
    words = " ".join(str(w.message) for w in said)
    assert "3 of 7 contours lie outside of the volume's slices" in words
    assert "4 of 7 contours reach beyond the volume" in words
    assert np.array_equal(mask[0], judged([disc], (48, 40))) and np.array_equal(mask[3], mask[0])
    assert not mask[4:].any()


@pytest.mark.filterwarnings("ignore::lungseg.contours.ContourWarning")
def test_all_outside_is_empty_if_the_frame_is_proved_and_an_error_if_not(drawn, plain):
    _, volume, _ = plain
    path = drawn(("Lungs", [(z, DISC) for z in range(40, 44)]))
    with pytest.warns(ContourWarning, match="none of 4 contours meets a voxel"):
        assert not read_rtstruct(path, volume).any()
    with pytest.raises(MaskError, match="none of 4 contours meets the volume"):
        read_rtstruct(path, Volume(volume.array, volume.affine))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "ContourData has 10 numbers, expected triples"),
        ([], "ContourData has 0 points"),
        (None, "ContourData has 0 points"),
        (b"1\\2\\3\\4\\5\\nan\\7\\8\\9 ", "ContourData is not finite"),
        (b"1\\2\\3\\4\\5\\1e999\\7\\8\\9 ", "ContourData is not finite"),
        (b"1\\2\\3\\4\\x\\6\\7\\8\\9 ", "ContourData is missing or not numeric"),
        (b"1\\2\\3\\\\5\\6\\7\\8\\9 ", "ContourData is missing or not numeric"),
    ],
)
def test_an_impossible_contour_is_named(data, words, drawn, plain):
    made = item(ContourGeometricType="CLOSED_PLANAR")
    if isinstance(data, bytes):
        made[DATA] = RawDataElement(DATA, "DS", len(data), data, 0, False, True)
    elif data is not None:
        made.ContourData = data
    path = drawn(("Heart", [(3, DISC)]), ("Lungs", [(3, DISC), made]))
    with pytest.raises(MaskError) as raised:
        read_rtstruct(path, plain[1])
    assert str(raised.value).startswith("rs.dcm: ROI 2 (Lungs), contour 2: ") and words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert read_rtstruct(path, plain[1], roi="Heart").any()  # an ROI that nobody asked for does no harm


@pytest.mark.parametrize("points", [1, 2])
def test_a_speck_of_one_or_two_points_is_passed_over_and_said(points, drawn, plain):
    "Some programs write them for single voxels; they enclose no area."
    speck = contour(plain[1].index_to_mm(np.array([[3.0, 9, 9 + i] for i in range(points)])))
    with pytest.warns(ContourWarning, match="1 of one or two points"):
        mask = read_rtstruct(drawn(("Lungs", [(3, DISC), speck])), plain[1])
    assert np.array_equal(mask, read_rtstruct(drawn(("Lungs", [(3, DISC)])), plain[1]))


def test_a_wrong_number_of_points_is_an_error(drawn, plain):
    made = contour(plain[1].index_to_mm(np.c_[np.full(90, 3.0), DISC]))
    made.NumberOfContourPoints = 91
    with pytest.raises(MaskError, match="90 points, expected NumberOfContourPoints, 91"):
        read_rtstruct(drawn(("Lungs", [made])), plain[1])


def test_the_rois_own_frame_of_reference_decides(drawn, plain):
    _, volume, _ = plain
    path = drawn(("Lungs", [(3, DISC)]))
    ds = dcmread(path)
    ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3.4"
    ds.save_as(path)
    with pytest.raises(MaskError, match="ReferencedFrameOfReferenceUID is another") as raised:
        read_rtstruct(path, volume)
    assert "1.2.3.4" not in str(raised.value)
    del ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID
    ds.save_as(path)
    assert read_rtstruct(path, volume).any()
    with pytest.warns(ContourWarning, match="placed unproved"):
        read_rtstruct(path, Volume(volume.array, volume.affine))


def test_no_lung_prints_the_names_and_half_a_pair_is_refused(drawn, plain):
    disc = [(3, DISC)]
    with pytest.raises(MaskError, match=r"no ROI of the lungs, .* there are BODY, PTV lung$"):
        read_rtstruct(drawn(("BODY", disc), ("PTV lung", disc)), plain[1])
    with pytest.raises(MaskError, match=r"rs.dcm: only the right lung among its ROIs \(Rt Lung\)"):
        read_rtstruct(drawn(("BODY", disc), ("Rt Lung", disc)), plain[1])
    with pytest.raises(MaskError, match=r"rs.dcm: no contours in Lung_L, expected both lungs"):
        read_rtstruct(drawn(("Lung_L", []), ("Lung_R", disc)), plain[1])
    assert roi_names(drawn(("Lung_L", []), ("Lung_R", disc))) == ["Lung_L", "Lung_R"]


def test_empty_rois_of_a_template_do_not_hide_the_lungs(drawn, plain):
    disc = [(3, DISC)]
    path = drawn(("Lung_L", []), ("Lung_R", []), ("Lungs", disc), ("Heart", []))
    assert read_rtstruct(path, plain[1]).sum() == judged([DISC], (48, 40)).sum()
    with pytest.raises(MaskError, match=r"ROI 4 \(Heart\): no closed contour"):
        read_rtstruct(path, plain[1], roi="Heart")
    with pytest.warns(ContourWarning, match=r"ROI 4 \(Heart\): no closed contours"):
        read_rtstruct(path, plain[1], roi=["Heart", "Lungs"])


def test_rois_of_one_name_are_read_together(drawn, plain):
    a, b = (3, 12 + 6 * CIRCLE), (5, 30 + 6 * CIRCLE)
    mask = read_rtstruct(drawn(("Lungs", [a]), ("Lungs", [b])), plain[1])
    assert mask[3].any() and mask[5].any()


def test_what_is_no_structure_set_is_refused(plain, tmp_path):
    files, volume, path = plain
    (tmp_path / "notes.dcm").write_text("no DICOM")
    (tmp_path / "empty.dcm").touch()
    for other in (
        files[0],
        tmp_path / "notes.dcm",
        tmp_path / "empty.dcm",
        tmp_path / "missing.dcm",
        tmp_path,
    ):
        with pytest.raises(InputError) as raised:
            read_rtstruct(other, volume)
        assert str(tmp_path.parent) not in str(raised.value)
    with pytest.raises(MaskError, match="expected a volume of known spacing"):
        read_rtstruct(path, Volume(volume.array, volume.affine, {"spacing_known": False}))


def test_a_cut_file_is_an_error_and_never_half_a_mask(plain, tmp_path):
    _, volume, path = plain
    whole, data = read_rtstruct(path, volume), path.read_bytes()
    for share in np.linspace(0.02, 0.999, 40):
        (tmp_path / "cut.dcm").write_bytes(data[: int(share * len(data))])
        try:
            mask, _ = rtstruct_mask(tmp_path / "cut.dcm", volume)
        except LungsegError as e:
            assert str(e).startswith("cut.dcm: ") and "\n" not in str(e)
        else:
            assert np.array_equal(mask, whole)


# What we write


@pytest.mark.skipif(which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error_in_what_we_write(plain):
    said = subprocess.run(["dciodvfy", "-new", str(plain[2])], capture_output=True, text=True).stderr
    assert "RTStructureSet" in said and "Error" not in said


def test_numbers_fit_their_field_and_every_contour_names_its_slice(plain):
    files, _, path = plain
    ds = dcmread(path)
    slices = {dcmread(f).SOPInstanceUID: dcmread(f).ImagePositionPatient for f in files}
    series = (
        ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    )
    assert {i.ReferencedSOPInstanceUID for i in series.ContourImageSequence} == set(slices)
    for one in ds.ROIContourSequence[0].ContourSequence:
        text = one.get_item("ContourData").value.decode().strip().split("\\")
        assert max(map(len, text)) <= 16 and len(text) == 3 * one.NumberOfContourPoints
        on = slices[one.ContourImageSequence[0].ReferencedSOPInstanceUID]
        assert {float(z) for z in text[2::3]} == {round(float(on[2]), 3)}
    assert ds.StructureSetROISequence[0].ROIGenerationAlgorithm == "AUTOMATIC"
    assert ds.RTROIObservationsSequence[0].RTROIInterpretedType == "ORGAN"
    assert len(ds.ROIContourSequence[0].ROIDisplayColor) == 3


def test_a_polygon_of_very_many_points_fits_its_field(tmp_path):
    files, volume = stack(tmp_path / "ct", 3, (150, 150))
    mask = np.random.default_rng(0).random(volume.shape) < 0.85
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write_rtstruct({"Lungs": mask}, volume, tmp_path / "rs.dcm", ct=files)
    assert max(len(c) for c in read_rois(path)[0].contours) > 65_534 / 3 / 9
    element = dcmread(path).ROIContourSequence[0].ContourSequence[0]["ContourData"]
    assert element.VR == "DS"
    assert np.array_equal(quiet(path, volume), mask)


def test_the_patient_is_the_cts_and_nothing_more(plain, tmp_path):
    files, volume, _ = plain
    for file in files:
        ds = dcmread(file)
        ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 100", "Müller^Ö"
        ds.InstitutionName, ds.PatientAddress, ds.OtherPatientIDs = "Clinic", "Lane 1", "77"
        ds.save_as(tmp_path / file.name)
    mask = np.zeros(volume.shape, bool)
    mask[4, 5:9, 5:9] = True
    given = sorted(tmp_path.glob("*.dcm"))
    path = write_rtstruct({"Płuco lewe": mask}, volume, tmp_path / "out" / "rs.dcm", ct=given)
    ct, ours = dcmread(given[0]), dcmread(path)
    assert str(ours.PatientName) == "Müller^Ö" and roi_names(path) == ["Płuco lewe"]
    for keyword in (
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "StudyDate",
    ):
        assert ours[keyword].value == ct[keyword].value
    assert ours.SeriesInstanceUID != ct.SeriesInstanceUID and ours.SOPInstanceUID not in {ct.SOPInstanceUID}
    assert not {"InstitutionName", "PatientAddress", "OtherPatientIDs"} & set(ours.dir())
    again = dcmread(write_rtstruct({"Lungs": mask}, volume, tmp_path / "out" / "rs.dcm", ct=given))
    assert again.SOPInstanceUID != ours.SOPInstanceUID


def test_a_write_that_fails_leaves_the_old_file(plain, tmp_path):
    files, volume, path = plain
    target = tmp_path / "rs.dcm"
    copy(path, target)
    before, mask = target.read_bytes(), np.ones(volume.shape, bool)
    other = Volume(volume.array, volume.affine, {"SeriesInstanceUID": "1.2.3"})
    tilted = Volume(
        volume.array, volume.affine @ np.array([[1, 0, 0, 0], [0.3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    )
    steep = volume.affine.copy()
    steep[:3, :3] = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]) @ steep[:3, :3]
    bad = [
        (MaskError, {"Lungs": mask[1:]}, volume, files),
        (MaskError, {"Lungs": mask}, volume, files[1:]),
        (MaskError, {"Lungs": mask}, other, files),
        (MaskError, {"Lungs": mask}, Volume(volume.array, steep), files),
        (InputError, {}, volume, files),
        (InputError, {"a\\b": mask}, volume, files),
        (InputError, {"x" * 65: mask}, volume, files),
        (SeriesError, {"Lungs": mask}, volume, []),
        (SeriesError, {"Lungs": mask}, volume, [path]),
        (SeriesError, {"Lungs": mask}, volume, [*files, *write_series(tmp_path / "other", z_mm=[0])]),
    ]
    for error, masks, where, ct in bad:
        with pytest.raises(error) as raised:
            write_rtstruct(masks, where, target, ct=ct)
        assert "\n" not in str(raised.value) and str(tmp_path) not in str(raised.value)
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".dcm"] == ["other"]
    sheared = mask.copy()
    sheared[:, :2] = False
    out = write_rtstruct(
        {"Lungs": sheared}, tilted, target, ct=files
    )  # a leaning stack still lies on its slices
    assert np.array_equal(quiet(out, tilted), sheared)


def test_an_empty_mask_is_an_roi_without_contours(plain, tmp_path):
    files, volume, _ = plain
    some, none = np.zeros((2, *volume.shape), bool)
    some[3, 4:9, 4:9] = True
    path = write_rtstruct(
        {"Lung_L": some, "Lung_R": some, "GTV": none}, volume, tmp_path / "rs.dcm", ct=files
    )
    assert roi_names(path) == ["Lung_L", "Lung_R", "GTV"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_rtstruct(path, volume), some)


def test_contours_refer_to_the_frames_of_an_enhanced_ct(tmp_path):
    given = real("dicom-robustness/dcmqi/enhanced_multiframe_24x38x3.dcm")
    ds = dcmread(given)
    groups = ds.PerFrameFunctionalGroupsSequence
    shared = ds.SharedFunctionalGroupsSequence[0]
    places = np.array([g.PlanePositionSequence[0].ImagePositionPatient for g in groups], float)
    turn = (shared if "PlaneOrientationSequence" in shared else groups[0]).PlaneOrientationSequence[0]
    grid = (shared if "PixelMeasuresSequence" in shared else groups[0]).PixelMeasuresSequence[0]
    along, down = np.reshape(turn.ImageOrientationPatient, (2, 3)).astype(float)
    row, col = map(float, grid.PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([(places[-1] - places[0]) / (len(places) - 1), down * row, along * col], axis=1)
    affine[:3, 3] = places[0]
    frame = str(ds.FrameOfReferenceUID)
    volume = Volume(
        np.zeros((len(places), ds.Rows, ds.Columns), np.int16), affine, {"FrameOfReferenceUID": frame}
    )
    mask = np.zeros(volume.shape, bool)
    mask[:, 5:15, 6:20] = True
    mask[1, 8:10, 9:12] = False
    path = write_rtstruct({"Lungs": mask}, volume, tmp_path / "rs.dcm", ct=[given])
    assert np.array_equal(read_rtstruct(path, volume), mask)
    numbers = [
        c.ContourImageSequence[0].ReferencedFrameNumber
        for c in dcmread(path).ROIContourSequence[0].ContourSequence
    ]
    assert sorted(numbers) == [1, 2, 3]


# A real structure set


@pytest.fixture
def breast():
    "One slice of a real CT, 3 mm thick, and the structure set drawn on its series."
    folder = real("dicom-robustness/dicompyler")
    ds = dcmread(folder / "ct.0.dcm")
    affine = np.eye(4)
    affine[:3, :3] = np.diag([3.0, *map(float, ds.PixelSpacing)])[:, [0, 1, 2]][::-1]
    affine[:3, :3] = np.array(
        [[0, 0, float(ds.PixelSpacing[1])], [0, float(ds.PixelSpacing[0]), 0], [3.0, 0, 0]]
    )
    affine[:3, 3] = ds.ImagePositionPatient
    frame = {"FrameOfReferenceUID": str(ds.FrameOfReferenceUID)}
    return folder / "rtss.dcm", Volume(np.zeros((1, ds.Rows, ds.Columns), np.int16), affine, frame)


def test_the_real_body_is_on_its_slice_as_matplotlib_sees_it(breast):
    path, volume = breast
    with pytest.warns(ContourWarning, match="137 of 141 contours lie outside"):
        body = read_rtstruct(path, volume, roi="BODY")
    there = [volume.mm_to_index(c) for c in read_rois(path, "BODY")[0].contours]
    polygons = [i[:, 1:] for i in there if abs(i[0, 0]) < 0.05]
    second = np.logical_or.reduce([judged([p], volume.shape[1:]) for p in polygons])
    assert dice(body[0], second) > 0.9995
    assert 40_000 < body.sum() < 41_000


@pytest.mark.filterwarnings("ignore::lungseg.contours.ContourWarning")
def test_the_real_left_lung_is_not_on_that_slice(breast):
    path, volume = breast
    assert len(read_rois(path, "Lt Lung")[0].contours) == 165
    with pytest.warns(ContourWarning, match="165 of 165 contours lie outside"):
        assert not read_rtstruct(path, volume, roi="Lt Lung").any()


def test_the_real_areola_is_empty_and_one_lung_is_not_both(breast):
    path, volume = breast
    assert len(roi_names(path)) == 10
    with pytest.raises(MaskError, match=r"ROI 2 \(Areola\): no closed contour"):
        read_rtstruct(path, volume, roi="Areola")
    with pytest.raises(
        MaskError, match=r"only the left lung among its ROIs \(Lt Lung\).* there are BODY, Areola, .*Block$"
    ):
        read_rtstruct(path, volume)


def test_a_real_lung_on_a_made_up_stack_comes_back_through_our_own_file(breast, tmp_path):
    path, single = breast
    files, volume = stack(
        tmp_path / "ct", 90, (512, 512), spacing=(3.0, 1.074219, 1.074219), start=(-275.0, -524.0, -122.44)
    )
    frame = {"FrameOfReferenceUID": single.provenance["FrameOfReferenceUID"]}
    series = Volume(volume.array, volume.affine, frame)
    lung = quiet(path, series, roi="Lt Lung")
    areas = np.array([abs(_area_mm2(c)) for c in read_rois(path, "Lt Lung")[0].contours])
    ml = lung.sum() * 3.0 * 1.074219**2 / 1000
    assert abs(ml / (areas.sum() * 3.0 / 1000) - 1) < 0.02  # holes are few and small
    back = write_rtstruct({"Lt Lung": lung}, volume, tmp_path / "rs.dcm", ct=files)
    assert np.array_equal(quiet(back, volume, roi="Lt Lung"), lung)


def _area_mm2(contour):
    x, y = contour[:, 0], contour[:, 1]
    return 0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1))
