"""The one field of EXIF that changes what a picture shows: which way up it is."""

from __future__ import annotations

import struct

TAG = 0x0112
SHORT, LONG = 3, 4

#: cameras write some dozens of fields; a crafted file may claim 65535, and the field stands near the front (fields are
#: sorted)
MOST_FIELDS = 1000


def read_orientation(exif: bytes | memoryview) -> int:
    """Orientation 1 to 8, as EXIF counts them; 1, upright, where the field is missing or makes no sense. Never raises.

    `exif` is the TIFF block, from "II" or "MM" on; what follows the first directory is not looked at.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]), "")
    if not order:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * min(count, MOST_FIELDS), 12):
            tag, kind, number = struct.unpack_from(order + "HHI", exif, entry)
            if tag == TAG:
                if number != 1 or kind not in (SHORT, LONG):
                    return 1
                (value,) = struct.unpack_from(order + ("H" if kind == SHORT else "I"), exif, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:  # ends early, or points outside of itself
        pass
    return 1


def minimal_exif(orientation: int) -> bytes:
    """The TIFF block that says `orientation` and nothing else: 26 bytes."""
    header = struct.pack("<2sHI", b"II", 42, 8)
    return header + struct.pack("<HHHIHHI", 1, TAG, SHORT, 1, orientation, 0, 0)
