"""Images: an OCI layout of content-addressed blobs, and one read-only squashfs disk for each image.

`store.ImageStore` is the way in. Nothing of an image is ever unpacked on the host: layers are read as tar, merged in
memory (headers only) and streamed into a squashfs, so a hostile archive has no path, link or device to abuse.
"""

from portlayer.storage.image_config import ImageConfig
from portlayer.storage.images import HistoryLine, LoadedImage, StoredImage
from portlayer.storage.limits import Limits
from portlayer.storage.store import ImageStore, Removal

__all__ = ["HistoryLine", "ImageConfig", "ImageStore", "Limits", "LoadedImage", "Removal", "StoredImage"]
