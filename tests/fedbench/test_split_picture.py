import numpy as np
import pytest
from PIL import Image, ImageColor

from fedbench.report.split_picture import COLOURS, MIXED, split_picture
from scenarios import ClientSplit, ClientSplits, Dataset, Federation, Meta


def federation(clients, classes, domains, mixed=False, per_client=12):
    """Every client holds rows of its own domain and of one class, or of all where it is mixed."""
    none = np.empty(0, np.int64)
    owner = np.repeat(np.arange(clients), per_client)
    labels = (np.arange(len(owner)) if mixed else owner) % max(1, classes)
    domain = owner % domains
    data = Dataset(
        "toy", {"y": labels}, domain, tuple(f"domain {i}" for i in range(domains)),
        Meta("classification", (1,), tuple(f"class {i}" for i in range(classes))),
    )  # fmt: skip
    parts = (
        ClientSplit(np.flatnonzero(owner == c), none, none, -1 if mixed else c % domains)
        for c in range(clients)
    )
    return Federation(data, ClientSplits.of(parts), {})


def painted(path):
    """Share of the picture in every colour."""
    image = Image.open(path).convert("RGB")
    colours = image.getcolors(image.width * image.height)
    return image, {colour: count / (image.width * image.height) for count, colour in colours}


@pytest.mark.parametrize(
    ("clients", "classes"), [(4, 10), (100, 10), (4, 65), (1, 3), (30, 200), (6, 0), (250, 5)]
)
def test_pictures_of_every_shape_are_white_legible_in_size_and_carry_the_domains(tmp_path, clients, classes):
    split_picture(federation(clients, classes, 4), tmp_path / "split.png")
    image, share = painted(tmp_path / "split.png")
    assert share[255, 255, 255] > 0.4
    assert 500 < image.width < 2000
    assert 300 < image.height < 2200
    assert round(image.info["dpi"][0]) == 150
    for index in range(4):
        shown = share.get(ImageColor.getrgb(COLOURS[index]), 0) > 1e-4
        assert shown == (index < clients)
    assert share.get(ImageColor.getrgb(MIXED), 0) < 1e-3  # soft edges of letters


def test_mixed_clients_are_grey(tmp_path):
    split_picture(federation(5, 3, 2, mixed=True), tmp_path / "split.png")
    _, share = painted(tmp_path / "split.png")
    assert share[ImageColor.getrgb(MIXED)] > 0.01
    assert ImageColor.getrgb(COLOURS[0]) not in share


def test_more_domains_than_colours_are_not_told_apart(tmp_path):
    split_picture(federation(12, 3, 12), tmp_path / "split.png")
    _, share = painted(tmp_path / "split.png")
    assert share[ImageColor.getrgb(COLOURS[0])] > 0.01
    assert not any(ImageColor.getrgb(colour) in share for colour in COLOURS[1:6])


def test_what_the_axes_say(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (drawn.append(self), save(self, path)))

    split_picture(federation(4, 10, 2), tmp_path / "split.png", title="Mine")
    grid, bars = drawn[-1].axes
    assert drawn[-1].get_suptitle() == "Mine"
    assert [text.get_text() for text in grid.get_xticklabels()] == [f"class {i}" for i in range(10)]
    assert [text.get_text() for text in grid.get_yticklabels()] == ["0", "1", "2", "3"]
    assert [bar.get_width() for bar in bars.patches] == [12] * 4
    assert grid.collections[0].get_offsets().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert [text.get_text() for text in drawn[-1].legends[0].texts] == [
        "domain 0",
        "domain 1",
        "12 rows",
        "3 rows",
    ]

    split_picture(federation(250, 10, 1), tmp_path / "split.png")
    bars, grid = drawn[-1].axes
    assert drawn[-1].get_suptitle() == "toy, 250 clients"
    assert grid.get_xlabel() == "client (one of every 3 shown)"
    assert len(bars.patches) == 84
    labels = [text.get_text() for text in grid.get_xticklabels()]
    assert labels[:3] == ["0", "15", "30"]
    assert len(labels) <= 26
    offsets = grid.collections[0].get_offsets().astype(int)
    assert [tuple(point) for point in offsets[:3]] == [(0, 0), (1, 3), (2, 6)]  # clients 0, 3 and 6


def test_area_is_in_proportion_to_rows(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, _: drawn.append(self))
    none = np.empty(0, np.int64)
    labels = np.repeat([0, 1], [400, 100])
    data = Dataset(
        "toy", {"y": labels}, np.zeros(500, np.int64), ("d",), Meta("classification", (1,), ("a", "b"))
    )
    clients = ClientSplits.of([ClientSplit(np.arange(500), none, none, 0)])
    split_picture(Federation(data, clients, {}), tmp_path / "unused.png")
    bubbles = drawn[0].axes[0].collections[0]
    large, small = bubbles.get_sizes()
    assert large == pytest.approx(4 * small)
    assert bubbles.get_offsets().tolist() == [[0, 0], [1, 0]]  # the classes lie across
    marks = [
        (handle.get_label(), handle.get_markersize() ** 2) for handle in drawn[0].legends[0].legend_handles
    ]
    assert marks == [("400 rows", pytest.approx(large)), ("100 rows", pytest.approx(small))]


def test_a_crowd_is_counted(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (drawn.append(self), save(self, path)))
    none, rng = np.empty(0, np.int64), np.random.default_rng(0)
    sizes = np.where(np.arange(1_200) < 400, 2, 5)
    data = Dataset(
        "toy", {"y": rng.integers(0, 3, sizes.sum())}, np.zeros(sizes.sum(), np.int64), ("one", "two"),
        Meta("classification", (1,), ("a", "b", "c")),
    )  # fmt: skip
    data.arrays["y"][:800] = 2  # all that the small clients hold
    ends = np.cumsum(sizes)
    clients = ClientSplits.of(
        ClientSplit(np.arange(end - size, end), none, none, int(size == 5))
        for end, size in zip(ends, sizes, strict=True)
    )
    split_picture(Federation(data, clients, {}), tmp_path / "split.png")
    by_name = {axes.get_xlabel(): axes for axes in drawn[0].axes}
    bars = [bar for bar in by_name["training rows of a client"].patches if bar.get_height()]
    assert [(bar.get_x() + 0.5, bar.get_height()) for bar in bars] == [(2, 400), (5, 800)]
    shares = by_name["share of a client's most frequent class"].patches
    assert sum(bar.get_height() for bar in shares) == 1_200
    assert next(bar.get_height() for bar in shares if bar.get_x() > 0.95) == 400
    (image,) = by_name["class"].images
    assert image.get_array()[0].tolist() == [0, 0, 1]
    counts = np.bincount(data.arrays["y"][800:], minlength=3)
    assert image.get_array()[1].tolist() == pytest.approx((counts / 4_000).tolist())
    assert [text.get_text() for text in by_name["class"].get_yticklabels()] == ["one", "two"]
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["one", "two"]
    picture, share = painted(tmp_path / "split.png")
    assert 900 < picture.width < 1_200
    assert share[255, 255, 255] > 0.4


@pytest.mark.parametrize(("classes", "domains"), [(0, 1), (3, 12), (60, 3)])
def test_crowds_of_every_kind(tmp_path, classes, domains):
    split_picture(federation(1_001, classes, domains, per_client=3), tmp_path / "split.png")
    image, share = painted(tmp_path / "split.png")
    assert share[255, 255, 255] > 0.2
    assert 900 < image.width < 1_200
    assert share[ImageColor.getrgb(COLOURS[0])] > 0.005
