"""ICC profiles made by hand, and image files that Pillow does not write."""

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))  # XYZ of R, G, B at D50
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
# Lab of paper with no ink, and with 100 % of each of cyan, magenta, yellow and black.
PAPER, INKS = (100, 0, 0), ((55, -37, -50), (48, 74, -3), (89, -5, 93), (16, 0, 0))

Curve = Callable[[np.ndarray], np.ndarray]


def srgb_curve(values: np.ndarray) -> np.ndarray:
    """Encoded values 0 ... 1 => linear ones (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def gamma(exponent: float) -> Curve:
    """The curve of a power."""
    return lambda values: values**exponent


def number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2.4."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(number, (0.9642, 1, 0.8249)))} | tags
    offset, table, content = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", offset + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", offset + len(content), b"lcms", 0x02400000, kind, space, connection,
                       bytes(12), b"acsp") + bytes(28) + b"".join(map(number, (0.9642, 1, 0.8249)))  # fmt: skip
    return head + bytes(128 - len(head)) + table + content


def curve_tag(curve: Curve) -> bytes:
    levels = np.rint(curve(np.linspace(0, 1, 1024)) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(levels)) + levels.tobytes()


def rgb_profile(primaries: Sequence[Sequence[float]], curve: Curve) -> bytes:
    """A monitor's profile: a curve, then a matrix."""
    names = (b"rXYZ", b"gXYZ", b"bXYZ")
    colours = {name: b"XYZ \0\0\0\0" + b"".join(map(number, xyz)) for name, xyz in zip(names, primaries, strict=True)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve_tag(curve))
    return profile(b"RGB ", b"XYZ ", b"mntr", colours | curves)


def grey_profile(curve: Curve) -> bytes:
    """A profile of greys."""
    return profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": curve_tag(curve)})


def cmyk_profile() -> bytes:
    """A printer's profile, a table of the 16 solid overprints; inks multiply what they leave of the paper's light."""
    table = bytearray()
    for corner in np.ndindex(2, 2, 2, 2):
        inks = [ink for ink, printed in zip(INKS, corner, strict=True) if printed]
        light, a, b = np.prod([ink[0] / 100 for ink in inks]) * 100, *np.sum([(0, 0, 0), *inks], 0)[1:]
        table += bytes(np.clip([light * 2.55, a + 128, b + 128], 0, 255).astype(np.uint8))
    ramp = bytes(range(256))
    identity = b"".join(map(number, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(table) + ramp * 3
    return profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": lut})


def encode_srgb(xyz: np.ndarray) -> np.ndarray:
    """XYZ at D50 => sRGB 0 ... 255."""
    linear = (xyz @ np.linalg.inv(np.array(SRGB))).clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def lab_to_srgb(lab: Sequence[float]) -> np.ndarray:
    """CIE Lab at D50 => sRGB 0 ... 255."""
    y = (lab[0] + 16) / 116
    f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    return encode_srgb(np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * (0.9642, 1, 0.8249))


def png_file(rows: np.ndarray, depth: int, transparent: Sequence[int] | None = None) -> bytes:
    """A PNG of rows x columns x channels (1 grey, 2 with alpha, 3 RGB, 4 with alpha) at any depth in bits."""
    height, width, channels = rows.shape
    flat = rows.reshape(height, -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in flat]
    else:
        bits = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :].ravel() for row in flat]
        packed = [np.packbits(row).tobytes() for row in bits]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    key = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed)))
    return b"\x89PNG\r\n\x1a\n" + head + key + data + chunk(b"IEND", b"")


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with entries (tag, type, count, four bytes of content)."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + body + bytes(4)
