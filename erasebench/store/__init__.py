"""Where results lie: content-addressed steps, images, files written whole, and hashes of what decides a result."""

from erasebench.store.cache import has, key, plain_key, read_manifest, step
from erasebench.store.files import check_writable, replacing
from erasebench.store.images import ImageSet, Row, image_folder, missing, read_images, write_shard

__all__ = [
    "ImageSet",
    "Row",
    "check_writable",
    "has",
    "image_folder",
    "key",
    "missing",
    "plain_key",
    "read_images",
    "read_manifest",
    "replacing",
    "step",
    "write_shard",
]
