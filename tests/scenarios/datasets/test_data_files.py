import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenarios.datasets.files import decode_image, find, read_idx, read_images, resize
from scenarios.datasets.options import check_choice, check_flag, check_number, check_text, check_whole
from scenarios.federation import ScenarioError


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def test_find_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert find("d", tmp_path, "d", "Source.") == tmp_path / "d"
    assert find("d", str(tmp_path), "d", "Source.") == tmp_path / "d"
    with pytest.raises(ScenarioError) as missing:
        find("d", tmp_path, "d/a.gz", "D is published by X.")
    for part in (
        str(tmp_path / "d/a.gz"),
        "D is published by X.",
        "as d/a.gz",
        "data.root=",
        "FEDBENCH_DATA",
    ):
        assert part in str(missing.value)
    with pytest.raises(ScenarioError, match=r"no data folder is set.*data\.root=.*FEDBENCH_DATA"):
        find("d", None, "d/a.gz", "D is published by X.")


def test_idx_is_read_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path.write_bytes(gzip.compress(idx(array)))
    assert np.array_equal(read_idx(path), array)
    whole = path.read_bytes()
    damaged = {
        "not a whole gzip file": [whole[:-9], b"plain", whole[:20]],
        "not an IDX file": [b"", *map(gzip.compress, (b"", b"\0\0\x08", b"\0\0\x09\x01aaaa"))],
        "its header says 24": [gzip.compress(idx(array)[:-1]), gzip.compress(idx(array) + b"x")],
    }
    for problem, contents in damaged.items():
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(ScenarioError, match=problem) as error:
                read_idx(path)
            assert str(error.value).startswith(str(path))


def test_resize_keeps_mean_and_kind() -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 2, 28, 28), dtype=np.uint8)
    small = resize(x, 14)
    assert (small.shape, small.dtype) == ((3, 2, 14, 14), np.uint8)
    assert abs(small.mean() - x.mean()) < 3
    assert resize(x, 28) is x


def png(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def test_decode_image_gives_channels_first() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(png(array), 5, 3, "a"), array.transpose(2, 0, 1))
    assert decode_image(png(array), 7, 1, "a").shape == (1, 7, 7)
    grey = array[:, :, 0]
    assert np.array_equal(decode_image(png(grey), 5, 3, "a"), np.stack([grey] * 3))
    for content in (b"", b"text", png(array)[:60], png(array, "JPEG")[:-40]):
        with pytest.raises(ScenarioError, match=r"^a\.png: not a readable image"):
            decode_image(content, 5, 3, "a.png")


def test_zip_and_folder_give_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for number, name in enumerate(["b/y/1.png", "a/x/10.png", "a/y/2.PNG", "b/x/3.png", "a/x/9.png"]):
            content = png(np.full((4, 4), 10 * number + rng.integers(10), dtype=np.uint8))
            archive.writestr(name, content)
        archive.writestr("__MACOSX/x/._1.png", b"junk")
        archive.writestr("a/x/notes.txt", b"junk")
        archive.writestr("a/", b"")
    with zipfile.ZipFile(tmp_path / "z.zip") as archive:
        archive.extractall(tmp_path / "folder")
    zipped, folder = read_images(tmp_path / "z.zip", 4, 1), read_images(tmp_path / "folder", 4, 1)
    assert zipped.outers == folder.outers == ("a", "b")
    assert zipped.classes == folder.classes == ("x", "y")
    assert zipped.y.tolist() == folder.y.tolist() == [0, 0, 1, 0, 1]
    assert zipped.outer.tolist() == folder.outer.tolist() == [0, 0, 0, 1, 1]
    assert (zipped.x[:, 0, 0, 0] // 10).tolist() == [1, 4, 2, 3, 0]
    assert np.array_equal(zipped.x, folder.x)


def test_damaged_zips_are_named(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/x/1.png", png(np.zeros((4, 4), dtype=np.uint8)))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[60] ^= 255
    locked = bytearray(whole)
    locked[6] |= 1  # the flag of an encrypted member, in its own header and in the directory
    locked[whole.index(b"PK\x01\x02") + 8] |= 1
    for content in (b"", whole[: len(whole) // 2], bytes(flipped), bytes(locked)):
        path.write_bytes(content)
        with pytest.raises(ScenarioError, match="cannot be read whole") as error:
            read_images(path, 4, 1)
        assert str(error.value).startswith(str(path))


def test_options_say_what_would_be_right() -> None:
    with pytest.raises(
        ValueError, match=r"^a: unknown, got 'surff'; use surf or images; did you mean 'surf'\?"
    ):
        check_choice("a", "surff", ("surf", "images"))
    with pytest.raises(ValueError, match=r"^a: unknown, got True; use 1 or 3$"):
        check_choice("a", True, (1, 3))
    with pytest.raises(
        ValueError, match=r"^a: .* got 1\.5; use a whole number of at least 1, or null for all$"
    ):
        check_whole("a", 1.5, 1, none="all")
    check_whole("a", None, 1, none="all")
    with pytest.raises(ValueError, match=r"^a: .* got None"):
        check_whole("a", None, 1)
    for value in (-0.1, 1.1, float("nan"), True, "1"):
        with pytest.raises(ValueError, match=r"^a: .*; use one from 0 to 1$"):
            check_number("a", value, 0, 1)
    with pytest.raises(ValueError, match=r"^a: .* got 1; use true or false"):
        check_flag("a", 1)
    check_flag("a", False)
    check_text("a", None, "text", none=True)
    for text in ("", None, 3):
        with pytest.raises(ValueError, match=r"^a: .*; use text"):
            check_text("a", text, "text")
