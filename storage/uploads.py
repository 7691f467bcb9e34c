"""Objects that are there when their upload is complete, and not before."""

import hashlib
from typing import TYPE_CHECKING, Any

import blake3

from storage.errors import InputError

if TYPE_CHECKING:
    from storage.objects import ObjectStore

PART = 16 * 2**20  # of an upload; S3 takes 10,000 of them


class WholeUpload:
    """An object that is sent as a whole: kept in memory until then."""

    def __init__(self, store: "ObjectStore", path: str) -> None:
        self._store, self._path = store, path
        self._digest = blake3.blake3()
        self._unsent = bytearray()
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._unsent += data
        self._digest.update(data)
        self.length += len(data)

    def digest(self) -> str:
        """BLAKE3 of what was written."""
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Send it."""
        self._store.ask("pipe_file", self._store.full(self._path), bytes(self._unsent))
        self._unsent.clear()

    def discard(self) -> None:
        """Forget what was not sent."""
        self._unsent.clear()


class PartsUpload(WholeUpload):
    """The same in parts, where it is large: S3's multipart upload.

    fsspec's own files take a part or a completion that failed for done: `close` called once more
    returns at once. Each request is ours here, and repeated by itself.
    """

    def __init__(self, store: "ObjectStore", path: str) -> None:
        super().__init__(store, path)
        self._upload: dict[str, Any] = {}  # what names it, once there is more than one part
        self._parts: list[dict[str, Any]] = []

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, and send those that fill a part."""
        super().write(data)
        while len(self._unsent) >= 2 * PART:  # so that a last part is never empty
            self._send(PART)

    def finish(self) -> None:
        """Complete the upload.

        Raises:
            InputError: The upload was aborted by somebody.
        """
        if not self._upload:
            super().finish()
            return
        if self._unsent:
            self._send(len(self._unsent))
        try:
            self._call("complete_multipart_upload", MultipartUpload={"Parts": self._parts})
        except FileNotFoundError:
            if self._etag_there() != self._expected_etag():  # else an answer was lost
                raise self._aborted() from None
        self._upload = {}

    def discard(self) -> None:
        """Abort the upload, if it was not completed."""
        super().discard()
        if self._upload:
            try:
                self._call("abort_multipart_upload", once=True)
            except (FileNotFoundError, InputError):  # the next run does it
                pass
            self._upload = {}

    def _send(self, length: int) -> None:
        if not self._upload:
            bucket, key = bucket_and_key(self._store, self._path)
            started = self._store.ask("call_s3", "create_multipart_upload", Bucket=bucket, Key=key)
            self._upload = {"Bucket": bucket, "Key": key, "UploadId": started["UploadId"]}
        number = len(self._parts) + 1
        part = bytes(memoryview(self._unsent)[:length])
        try:
            answer = self._call("upload_part", PartNumber=number, Body=part)
        except FileNotFoundError:
            raise self._aborted() from None
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        del self._unsent[:length]

    def _call(self, method: str, **arguments: Any) -> Any:  # noqa: ANN401  # s3fs's
        return self._store.ask("call_s3", method, **self._upload, **arguments)

    def _aborted(self) -> InputError:
        return InputError(
            f"{self._store.where(self._path)}: its upload was aborted by somebody, such as a "
            "second run or a rule of the bucket; run it again: what is finished stays"
        )

    def _expected_etag(self) -> str:
        digests = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in self._parts)
        return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._parts)}"

    def _etag_there(self) -> str:
        try:
            facts = self._store.ask("info", self._store.full(self._path))
        except FileNotFoundError:
            return ""
        return str(facts.get("ETag", "")).strip('"')


def abort_uploads(store: "ObjectStore") -> None:
    """Abort all uploads below a data set, as far as the server lets us."""
    bucket, prefix = bucket_and_key(store, "")
    place: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix + "/"}
    try:
        while True:
            answer = store.ask("call_s3", "list_multipart_uploads", **place)
            for upload in answer.get("Uploads", []):
                names = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                store.ask("call_s3", "abort_multipart_upload", Bucket=bucket, **names)
            if not answer.get("IsTruncated"):
                return
            place["KeyMarker"] = answer["NextKeyMarker"]
            place["UploadIdMarker"] = answer["NextUploadIdMarker"]
    except (FileNotFoundError, InputError):  # not ours to see, or somebody was faster
        return


def bucket_and_key(store: "ObjectStore", path: str) -> tuple[str, str]:
    """An object's name as S3 takes it."""
    bucket, _, key = store.full(path).partition("/")
    return bucket, key
