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
    #: What a compressed archive may ask for while it is inflated: 7-Zip's "ultra" asks for 64 MiB, a header for 4 GiB.
    max_dictionary_bytes: int = 256 * MIB
    #: A longer text file is no caption.
    max_caption_bytes: int = 64 * 1024
    #: A longer table of captions, or list of addresses, is not read.
    max_table_bytes: int = 32 * MIB

    #: Whether lists of addresses are downloaded at all.
    allow_downloads: bool = True
    #: Whether Arrow and Parquet are read: they were not made to be read from strangers. The bot says no.
    allow_arrow: bool = True
    #: Addresses in private networks, this machine's own among them, are refused: a list could make the trainer ask
    #: services that only it can reach.
    allow_private_addresses: bool = False
    #: Addresses of one list.
    max_downloads: int = 2000
    #: One download.
    max_download_bytes: int = 64 * MIB
    #: All downloads of one list.
    max_downloaded_bytes: int = 4 * 1024 * MIB
    #: Wall time of one download, redirects included.
    download_timeout_s: float = 60.0
    max_redirects: int = 5

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
    #: Short side that blur and likeness are judged at, px.
    checked_side_px: int = 512
    #: What shows through transparent pictures, RGB.
    background: tuple[int, int, int] = (255, 255, 255)
