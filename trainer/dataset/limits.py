"""The limits that untrusted archives and pictures are opened under, each a setting."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is opened, and what is kept."""

    #: Entries of one archive, or files of one folder.
    max_entries: int = 20_000
    #: Size of an archive's list of entries, whatever its end record claims to hold.
    max_directory_bytes: int = 16 * MIB
    #: One file, inflated. A 24-bit BMP of `max_pixels` is 300 MB.
    max_entry_bytes: int = 320 * MIB
    #: All entries of one archive, inflated.
    max_archive_bytes: int = 8 * 1024 * MIB
    #: Inflated size over compressed size. Photographs stay near 1, captions under 10, flat BMPs reach hundreds.
    max_ratio: float = 200.0
    #: Below this inflated size a ratio harms nobody.
    ratio_floor_bytes: int = 16 * MIB
    #: A longer text file is no caption.
    max_caption_bytes: int = 64 * 1024

    #: Refused from the header, before anything is decoded.
    max_pixels: int = 100_000_000
    #: Address space of one decoding process. 100 Mpx with alpha take about 1.5 GiB on their way to RGB.
    worker_memory_bytes: int = 3 * 1024 * MIB
    #: Processor time after which a decoder is ended; wall time would drop good pictures on a busy machine.
    decode_cpu_s: float = 60.0

    #: Pictures are dropped below this side,
    min_side_px: int = 64
    #: or when longer than this by wide (or the reverse)
    max_aspect: float = 4.0
    #: with a short side below this.
    min_short_side_px: int = 128
    #: Area that a picture is stored at, at most: four times SDXL's 1024², so that no training resolution misses it.
    max_stored_pixels: int = 2048 * 2048
    #: What shows through transparent pictures, RGB.
    background: tuple[int, int, int] = (255, 255, 255)
