"""JSON that the API takes and gives: creatives, and the metadata of operations."""

from __future__ import annotations

from typing import Any

NAME = "operations/ingest"
#: What signs the URL of a media file.
SIGNATURE = "s1gn4ture"
URL = "https://media.example/ad.mp4"
SIGNED_URL = f"{URL}?X-Goog-Signature={SIGNATURE}"
METADATA_TYPE = "type.googleapis.com/google.ads.dai.v1.CreateCreativeOperationMetadata"


def media_file(uri: Any = URL, **fields: Any) -> dict[str, Any]:
    return {"uri": uri, "delivery": "DELIVERY_PROGRESSIVE", "mimeType": "video/mp4", **fields}


def creative(url: str = URL, **fields: Any) -> dict[str, Any]:
    """Return a creative with one media file; further fields are added, or replace its own."""
    return {"adSystem": "example", "mediaFiles": [media_file(url)], **fields}


def metadata(**fields: Any) -> dict[str, Any]:
    """Return the metadata of an ingest."""
    return {"@type": METADATA_TYPE, **fields}


def large_url(size: int) -> str:
    """Return a media URL of so many characters."""
    return "https://media.example/ad.mp4?".ljust(size, "x")
