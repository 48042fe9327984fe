"""A folder of small files, on a local disk or in a bucket, in which a file is replaced whole or not at all.

At every moment a reader finds the old file or the new one, with no lock, server or repair. Bytes are complete in memory
before anything is opened: a bucket publishes whatever had been written when a stream closes, even on an exception.
"""

import contextlib
import errno
import os
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_HALF = ".tmp-"


@dataclass(frozen=True)
class Folder:
    """The folder at a local path or a URI that pyarrow knows, such as s3://bucket/prefix. Nothing is opened until used.

    S3 takes credentials, region and another server's address (MinIO, an emulator) from the usual variables, such as
    AWS_REGION and AWS_ENDPOINT_URL. A relative path is made absolute: another process may have another directory.
    """

    uri: str

    def __post_init__(self) -> None:
        if "://" not in self.uri:
            object.__setattr__(self, "uri", os.path.abspath(os.path.expanduser(self.uri)))

    def path(self, name: str) -> str:
        """The file `name` of the folder as messages should call it."""
        return f"{self.uri.partition('?')[0].rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """The content of the file `name`, None where there is none. Raises OSError where it cannot be read."""
        from pyarrow.fs import FileType

        fs, root = self._place
        if fs.get_file_info(f"{root}/{name}").type != FileType.File:
            return None
        with fs.open_input_file(f"{root}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, data: bytes) -> None:
        """Make `data` the whole content of the file `name`; else leave it as it was and raise OSError with its path."""
        fs, root = self._place
        try:
            if self._local:
                _replace(f"{root}/{name}", data)
            else:
                with fs.open_output_stream(f"{root}/{name}") as stream:
                    stream.write(data)
        except OSError as error:
            if error.errno is None:
                raise OSError(f"cannot write {self.path(name)}: {error}") from error
            raise OSError(error.errno, f"cannot write: {os.strerror(error.errno)}", self.path(name)) from error

    def entries(self, name: str = "") -> "list[FileInfo]":
        """What lies in the folder or in its folder `name`, but for half-written files; nothing where there is none."""
        from pyarrow.fs import FileSelector

        fs, root = self._place
        infos = fs.get_file_info(FileSelector(f"{root}/{name}".rstrip("/"), allow_not_found=True))
        return sorted((i for i in infos if not i.base_name.startswith(_HALF)), key=lambda i: i.base_name)

    def make(self, name: str = "") -> None:
        """Make the folder, or its folder `name` where it is there; a folder that vanished is an OSError."""
        from pyarrow.fs import FileType

        fs, root = self._place
        if self._local:  # a bucket has keys, not folders
            if name and fs.get_file_info(root).type != FileType.Directory:
                raise FileNotFoundError(errno.ENOENT, "the folder has vanished", root)
            fs.create_dir(f"{root}/{name}", recursive=True)

    def remove(self, name: str) -> None:
        """Remove the file `name`, or the folder with all that is in it; nothing happens where there is none."""
        from pyarrow.fs import FileType

        fs, root = self._place
        kind = fs.get_file_info(f"{root}/{name}").type
        if kind == FileType.Directory:
            fs.delete_dir(f"{root}/{name}")
        elif kind == FileType.File:
            fs.delete_file(f"{root}/{name}")

    @property
    def _local(self) -> bool:
        from pyarrow.fs import LocalFileSystem

        return isinstance(self._place[0], LocalFileSystem)

    @cached_property
    def _place(self) -> "tuple[FileSystem, str]":
        from pyarrow.fs import FileSystem, LocalFileSystem

        if "://" not in self.uri:
            return LocalFileSystem(), self.uri
        fs, path = FileSystem.from_uri(self.uri)
        return fs, path.rstrip("/")


def _replace(path: str, data: bytes) -> None:
    folder, name = os.path.split(path)
    half = os.path.join(folder, f"{_HALF}{uuid.uuid4().hex}-{name}")
    try:
        with open(half, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(half)
        raise
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)  # else a power cut can undo the rename of a row that was acknowledged
    finally:
        os.close(entry)
