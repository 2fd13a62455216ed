"""Image files of others: what looks alike is the same image, and what is doubtful is refused."""

from __future__ import annotations

import ast
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from analogy.core import images
from analogy.core.images import (
    MAX_RATIO,
    ImageError,
    check_images,
    from_png,
    image_files,
    list_images,
    read_image,
    to_png,
)

WHITE = np.full((32, 32, 3), 255, np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def blocks(channels: int = 3, size: int = 32) -> np.ndarray:
    """Blocks of colours, which an image turned or mirrored does not share with this one."""
    few = np.random.default_rng(0).integers(0, 256, (size // 8, size // 8, channels), np.uint8)
    return np.kron(few, np.ones((8, 8, 1), np.uint8))


PICTURE = blocks()
GREY = np.repeat(PICTURE[..., :1], 3, axis=2)


@pytest.fixture
def file(tmp_path):
    """Save a Pillow image, or bytes, and give the file."""

    def save(image, name="image.png", **settings) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, **settings)
        return path

    return save


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(rows: np.ndarray, depth: int, colour: int, *more: bytes) -> bytes:
    """A PNG file of packed rows, bytes ``(height, n)``, with chunks before its pixels."""
    height, n = rows.shape
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", n * 8 // (depth * channels), height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rgb(*more: bytes) -> bytes:
    return png(PICTURE.reshape(32, -1), 8, 2, *more)


def same(path: Path, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(read_image(path), expected)


# --- formats


@pytest.mark.parametrize("kind", ["EPS", "GIF", "TIFF", "PPM", "ICO", "TGA", "PDF", "PSD"])
def test_a_file_of_another_format_is_refused_whatever_its_name(file, monkeypatch, kind):
    """Ghostscript is what Pillow would start for EPS."""
    if kind == "PSD":
        made = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(200)
    else:
        buffer = io.BytesIO()
        Image.fromarray(PICTURE).save(buffer, kind)
        made = buffer.getvalue()
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started")
    )
    with pytest.raises(ImageError, match=r"image\.png: expected an image file of PNG, JPEG"):
        read_image(file(made))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_the_four_formats_are_told_by_content(file, kind):
    settings = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    path = file(Image.fromarray(PICTURE), "image.jpg", format=kind, **settings.get(kind, {}))
    found = read_image(path)
    assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
    atol = 4 if kind == "JPEG" else 0
    np.testing.assert_allclose(found.astype(int), PICTURE.astype(int), atol=atol)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "EPS"])
def test_a_run_folders_images_are_png_alone(kind):
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, kind)
    with pytest.raises(ImageError, match="expected an image file of PNG, got another format"):
        from_png(buffer.getvalue())


def test_every_file_that_is_opened_has_a_list_of_formats():
    root = Path(images.__file__).parents[1]
    for path in (*(root / "analogy").rglob("*.py"), *(root / "tools").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                assert "formats" in {keyword.arg for keyword in node.keywords}, (path, node.lineno)


# --- what looks alike is one image


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied(file, kind, orientation):
    """As the standard says it: where row 0 and column 0 of what is stored belong on the screen."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {
        1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2), 6: PICTURE.transpose(1, 0, 2)[::-1],
        7: PICTURE.transpose(1, 0, 2)[::-1, ::-1], 8: PICTURE.transpose(1, 0, 2)[:, ::-1],
    }[orientation]  # fmt: skip
    settings = {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(np.ascontiguousarray(stored))
    same(file(image, format=kind, exif=exif, **settings), PICTURE)


def test_a_turned_jpeg_is_the_upright_one(file):
    exif = Image.Exif()
    exif[0x0112] = 3
    smooth = np.zeros((32, 32, 3), np.uint8) + np.arange(0, 256, 8, dtype=np.uint8)[:, None, None]
    turned = file(Image.fromarray(smooth[::-1, ::-1].copy()), "a.jpg", exif=exif, quality=100)
    np.testing.assert_allclose(read_image(turned).astype(int), smooth.astype(int), atol=2)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"\xff" * 40])
def test_damaged_exif_turns_nothing(file, exif):
    same(file(rgb(chunk(b"eXIf", exif))), PICTURE)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(file, value):
    exif = Image.Exif()
    exif[0x0112] = value
    same(file(Image.fromarray(PICTURE), exif=exif), PICTURE)


@pytest.mark.parametrize("low", [0, None])
def test_16_bits_lose_their_low_byte(file, low):
    """Grey, grey with alpha, RGB and RGBA; the low byte is 0, or that of 257 times 8 bits."""

    def wide(values: np.ndarray) -> np.ndarray:
        second = np.zeros_like(values) if low == 0 else values
        return np.stack([values, second], axis=-1).reshape(32, -1)

    opaque = np.full((32, 32, 1), 255, np.uint8)
    same(file(png(wide(GREY[..., 0]), 16, 0)), GREY)
    same(file(png(wide(PICTURE), 16, 2)), PICTURE)
    same(file(png(wide(np.dstack([GREY[..., :1], opaque])), 16, 4)), GREY)
    same(file(png(wide(np.dstack([PICTURE, opaque])), 16, 6)), PICTURE)


def test_grey_1_bit_and_palette_are_rgb(file):
    same(file(Image.fromarray(GREY[..., 0])), GREY)
    two = np.where(GREY > 127, 255, 0).astype(np.uint8)
    for name in ("a.png", "a.bmp"):
        same(file(Image.fromarray(two[..., 0]).convert("1"), name), two)
        same(file(Image.fromarray(PICTURE).quantize(64, dither=0), name), PICTURE)
    four = (GREY[..., 0] // 64).reshape(32, 8, 4)
    packed = (four << np.array([6, 4, 2, 0])).sum(axis=2).astype(np.uint8)
    same(file(png(packed, 2, 0)), (GREY // 64) * 85)


def test_hidden_colours_under_transparent_pixels_are_white(file):
    alpha = np.full((32, 32, 1), 255, np.uint8)
    alpha[:16] = 0
    shown = PICTURE.copy()
    shown[:16] = 255
    for hidden in (PICTURE, np.where(alpha == 0, 0, PICTURE), np.where(alpha == 0, 77, PICTURE)):
        rgba = Image.fromarray(np.dstack([hidden, alpha]).astype(np.uint8))
        same(file(rgba), shown)
        same(file(rgba, "a.webp", lossless=True, exact=True), shown)
    grey = GREY.copy()
    grey[:16] = 255
    same(file(Image.fromarray(np.dstack([GREY[..., :1], alpha]), "LA")), grey)


def test_alpha_of_255_changes_nothing_and_half_is_half_white(file):
    ramp = np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)
    ramp = np.dstack([ramp, ramp, ramp])
    opaque = np.full((32, 32, 1), 255, np.uint8)
    same(file(Image.fromarray(np.dstack([ramp, opaque]))), ramp)
    half = read_image(file(Image.fromarray(np.dstack([ramp, opaque // 2]))))
    np.testing.assert_allclose(half, ramp * (127 / 255) + 255 * (128 / 255), atol=0.51)


def test_a_transparent_shade_or_palette_entry_is_white(file):
    red = np.zeros((32, 32, 3), np.uint8)
    red[:16] = (200, 10, 10)
    shown = red.copy()
    shown[:16] = 255
    same(file(Image.fromarray(red), transparency=(200, 10, 10)), shown)
    grey = red[..., :1].repeat(3, axis=2)
    expected = np.where(grey == 200, 255, 0)
    same(file(Image.fromarray(grey[..., 0]), transparency=200), expected)
    one_bit = Image.fromarray(np.where(grey[..., 0] == 200, 0, 255).astype(np.uint8)).convert("1")
    same(file(one_bit, transparency=0), np.full_like(red, 255))
    few = Image.fromarray(red).quantize(2, dither=0)
    entry = few.getpixel((0, 0))
    same(file(few, transparency=entry), shown)
    clear = bytes(0 if i == entry else 255 for i in range(2))
    same(file(few, transparency=clear), shown)


@pytest.mark.parametrize(("depth", "colour"), [(16, 0), (16, 2), (4, 0), (2, 0)])
def test_a_transparent_shade_of_other_bits_is_refused(file, depth, colour):
    """Pillow compares it with values of 8 bits, and would make other pixels transparent."""
    rows = np.zeros((32, 32 * depth * (3 if colour == 2 else 1) // 8), np.uint8)
    shade = chunk(b"tRNS", bytes(6 if colour == 2 else 2))
    with pytest.raises(ImageError, match=rf"transparent shade at {depth} bits; save it with"):
        read_image(file(png(rows, depth, colour, shade)))


def test_an_image_that_is_transparent_all_over_is_refused(file):
    clear = np.dstack([PICTURE, np.zeros((32, 32, 1), np.uint8)])
    with pytest.raises(ImageError, match="entirely transparent"):
        read_image(file(Image.fromarray(clear)))


# --- colours


def profile(primaries: tuple[float, ...], gamma: float = 2.2) -> bytes:
    """A matrix profile of RGB, written by hand as ICC.1 has it; primaries adapted to D50."""

    def s15(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(s15, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    for i, name in enumerate("rgb"):
        tags[f"{name}XYZ".encode()] = xyz(primaries[3 * i : 3 * i + 3])
        tags[f"{name}TRC".encode()] = curve
    return icc(b"RGB ", tags)


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    at = 128 + 4 + 12 * len(tags)
    table, bodies = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name + struct.pack(">II", at + len(bodies), len(body))
        bodies += body
    kind = (b"mntr", space, b"XYZ ")
    head = struct.pack(">I4sI4s4s4s", at + len(bodies), b"lcms", 0x02400000, *kind)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + bodies


P3 = (0.5151, 0.2412, -0.0011, 0.2920, 0.6922, 0.0419, 0.1571, 0.0666, 0.7841)
LIKE_SRGB = (0.4361, 0.2225, 0.0139, 0.3851, 0.7169, 0.0971, 0.1431, 0.0606, 0.7141)
GREY_ICC = icc(
    b"GRAY",
    {
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061),
        b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, 256) + b"\0\0",
    },
)


def linear(values: np.ndarray) -> np.ndarray:
    share = values / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def encoded(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_profile_is_applied(file, kind):
    """Against the matrices themselves: of Display P3's primaries, both adapted to D50."""
    settings = {"lossless": True} if kind == "WEBP" else {}
    path = file(Image.fromarray(PICTURE), format=kind, icc_profile=profile(P3), **settings)
    to_xyz, from_srgb = (np.array(m).reshape(3, 3).T for m in (P3, LIKE_SRGB))
    light = (PICTURE / 255) ** 2.2 @ to_xyz.T @ np.linalg.inv(from_srgb).T
    found = read_image(path)
    np.testing.assert_allclose(found, encoded(light), atol=2.5)
    assert np.abs(found.astype(int) - PICTURE).max() > 10


def test_a_grey_profile_is_applied(file):
    """Of gamma 1: half the light is far above half the scale."""
    path = file(Image.fromarray(GREY[..., 0]), icc_profile=GREY_ICC)
    np.testing.assert_allclose(read_image(path), encoded(GREY / 255), atol=1.5)
    with_alpha = np.dstack([GREY[..., :1], np.full((32, 32, 1), 255, np.uint8)])
    path = file(Image.fromarray(with_alpha, "LA"), icc_profile=GREY_ICC)
    np.testing.assert_allclose(read_image(path), encoded(GREY / 255), atol=1.5)


@pytest.mark.parametrize(
    "given",
    [SRGB, b"", b"no profile", SRGB[:200], profile(P3)[:150], GREY_ICC, icc(b"CMYK", {})],
    ids=["sRGB", "empty", "text", "cut", "cut", "of grey", "of CMYK"],
)
def test_srgb_and_profiles_that_viewers_ignore_change_nothing(file, given):
    same(file(Image.fromarray(PICTURE), icc_profile=given), PICTURE)
    same(file(Image.fromarray(PICTURE).quantize(64, dither=0), icc_profile=given), PICTURE)


def test_cmyk_is_refused(file):
    with pytest.raises(ImageError, match="expected an image file in grey or RGB, got CMYK"):
        read_image(file(Image.fromarray(PICTURE).convert("CMYK"), "a.jpg"))


PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def gama(gamma: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", gamma))


def chrm(*values: int) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *values))


def test_a_png_that_says_srgb_in_other_words_is_as_it_is(file):
    for chunks in (
        [gama(45455)], [gama(45000), chrm(*PRIMARIES)], [gama(0)],
        [chunk(b"sRGB", b"\0"), gama(100000)], [chunk(b"cICP", bytes([1, 13, 0, 1]))],
    ):  # fmt: skip
        same(file(rgb(*chunks)), PICTURE)


@pytest.mark.parametrize(
    "chunks",
    [
        [gama(100000)],
        [gama(55556)],
        [chrm(31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)],
        [chunk(b"cICP", bytes([9, 16, 0, 1]))],
        [chunk(b"sRGB", b"\0"), chunk(b"cICP", b"\x0c\x0d\0\1")],
    ],
)
def test_a_png_of_other_colours_without_a_profile_is_refused(file, chunks):
    with pytest.raises(ImageError, match="a PNG that names other colours"):
        read_image(file(rgb(*chunks)))


# --- what is no single picture, or ends early, or is too large


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(file, kind):
    other = Image.fromarray(PICTURE[::-1].copy())
    path = file(Image.fromarray(PICTURE), format=kind, save_all=True, append_images=[other])
    with pytest.raises(ImageError, match="one image, got an animation of 2"):
        read_image(path)


def test_a_jpeg_with_several_pictures_is_its_first(file):
    """As a phone writes a photograph with its preview (MPO)."""
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    path = file(first, "a.jpg", format="MPO", save_all=True, append_images=[second])
    np.testing.assert_allclose(read_image(path).astype(int), [[[254, 0, 0]] * 32] * 32, atol=2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("is_lenient", [False, True])
def test_a_file_that_ends_early_is_refused_even_where_pillow_is_told_to_fill_it(
    file, monkeypatch, kind, is_lenient
):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = file(Image.fromarray(noise), format=kind)
    data = path.read_bytes()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_lenient)
    for share in (0.0, 0.01, 0.3, 0.6, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ImageError, match=r"image\.png: expected an image file"):
            read_image(path)
    assert is_lenient == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damage_is_an_image_error_and_no_other(file, kind):
    """A byte changed anywhere: the picture decodes, or the refusal names the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {} if kind == "BMP" else {"exif": exif, "icc_profile": profile(P3)}
    path = file(Image.fromarray(PICTURE), format=kind, **more)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            changed[at] = rng.integers(0, 256)
        path.write_bytes(changed)
        try:
            read_image(path)
        except ImageError as error:
            refused += str(path) in str(error)
    assert refused > 10


def test_a_decompression_bomb_is_refused_before_it_is_decoded(file, monkeypatch):
    bomb = png(np.zeros((1, 3), np.uint8), 8, 2)
    for side in (8193, 10_000, 20_000, 2**31 - 1):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path = file(bomb[:8] + chunk(b"IHDR", header) + bomb[33:])
        monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match=r"expected an image file of .* pixels"):
                read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as scripts do
    with pytest.raises(ImageError, match="at most 67,108,864 pixels"):
        read_image(path)


def test_a_strip_that_a_judge_would_blow_up_is_refused(file):
    long = Image.new("RGB", (MAX_RATIO * 2 + 1, 2))
    with pytest.raises(ImageError, match="at most 64 times the shorter, got 129 x 2"):
        read_image(file(long))
    assert read_image(file(Image.new("RGB", (MAX_RATIO * 2, 2)))).shape == (2, 128, 3)


def test_a_file_of_too_many_bytes_is_refused_unread(file, monkeypatch):
    path = file(Image.fromarray(PICTURE))
    with open(path, "r+b") as stream:
        stream.truncate(images.MAX_FILE_BYTES + 1)  # sparse: takes no place
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ImageError, match="at most 1,073,741,824 bytes"):
        read_image(path)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, what in (
        ("pipe.png", "pipe, socket or device"), ("folder.png", "got a folder"),
        ("none.png", "No such file"), ("a\0.png", "null"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=f"expected an image file .*{what}"):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="pipe, socket or device"):
        read_image(Path("/dev/zero"))


# --- folders

CLUTTER = (
    "._a.png", ".hidden.png", ".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png/SYNO_THUMB.jpg",
    "__MACOSX/._a.png", "__MACOSX/a.png", "deep/.git/x.png", "$RECYCLE.BIN/$R1.png",
    "#recycle/a.png", "System Volume Information/a.png", "lost+found/a.png", "Thumbs.db",
    ".DS_Store", "notes.txt", "a.png.partial", "desktop.ini",
)  # fmt: skip


def test_hidden_files_and_what_systems_leave_behind_are_no_images(tmp_path):
    root = tmp_path / ".cache" / "run"  # hidden itself, but named by the user
    for name in ("a.png", "deep/b.JPG", "c.webp", "deep/@eaDirectory/d.bmp", *CLUTTER):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    found = [path.relative_to(root).as_posix() for path in image_files(root)]
    assert found == ["a.png", "c.webp", "deep/@eaDirectory/d.bmp", "deep/b.JPG"]


def test_an_image_that_would_be_missing_in_silence_is_refused(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(to_png(PICTURE))
    (tmp_path / "link.png").symlink_to("b.png")
    assert len(image_files(tmp_path)) == 3
    (tmp_path / "link.png").unlink()
    (tmp_path / "link.png").symlink_to("annex/none.png")  # git-annex before 'get'
    with pytest.raises(ImageError, match=r"link\.png: .* got a link to no file"):
        image_files(tmp_path)
    (tmp_path / "link.png").unlink()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe\.png: .* got a pipe, socket or device"):
        image_files(tmp_path)


def test_a_folder_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ImageError, match=r"none: expected a folder that can be read \(No such"):
        list_images(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match=r"file: expected a folder that can be read \(Not a dir"):
        list_images(tmp_path / "file")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert list_images(tmp_path) == []


def test_every_file_is_decoded_and_the_first_that_fails_is_named(file, tmp_path):
    files = [file(Image.fromarray(PICTURE), f"{name}.png") for name in "abc"]
    check_images(files)
    files[1].write_bytes(files[1].read_bytes()[:60])
    with pytest.raises(ImageError, match=r"b\.png: expected an image file"):
        check_images(files)
