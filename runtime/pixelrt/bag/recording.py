"""Recordings of ROS 2 (.mcap, .db3, or a folder of rosbag2), read and written with rosbags."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rosbags.highlevel import AnyReader
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from pixelrt.bag.vision_msgs import DEFINITIONS
from pixelrt.errors import InputError
from pixelrt.ros.images import COMPRESSED, IMAGE
from pixelrt.ros.messages import LABEL_INFO, Maker

FORMS = (".mcap", ".db3")
VERSION: Final = 9  # of rosbag2's metadata
_FOREVER = QosTime(9223372036, 854775807)  # as rosbag2 writes it


def written_types() -> Typestore:
    """The types of the messages that are written."""
    # One release for all: its messages are the same in later ones, and the file does not change with rosbags.
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in DEFINITIONS.items():
        store.register(get_types_from_msg(text, name))
    return store


def maker_of(store: Typestore) -> Maker:
    return Maker(lambda name, **fields: store.types[name](**fields), lambda octets: octets)


@dataclass(frozen=True)
class Recording:
    """An open bag."""

    path: Path
    reader: AnyReader

    @property
    def about(self) -> dict[str, Any]:
        """What tells it from another, without reading it all."""
        files = [self.path] if self.path.is_file() else sorted(self.path.iterdir())
        return {
            "files": {file.name: file.stat().st_size for file in files},
            "messages": self.reader.message_count,
            "from_to_ns": [self.reader.start_time, self.reader.end_time],
        }

    def image_topics(self) -> dict[str, int]:
        """Topic -> how many messages, of those that carry images."""
        return {
            topic: info.msgcount
            for topic, info in self.reader.topics.items()
            if info.msgtype in (IMAGE, COMPRESSED) and info.msgcount
        }

    def image_topic(self, asked: str | None) -> str:
        """The topic to work on: the one asked for, or the only one. Raises InputError."""
        found = self.image_topics()
        listed = ", ".join(f"{topic} ({count:,})" for topic, count in found.items())
        if asked is not None:
            if asked in found:
                return asked
            info = self.reader.topics.get(asked)
            if info is None or not info.msgcount:
                what = f"has no messages on {asked}"
            else:
                what = f"has {info.msgtype or 'several types'} on {asked}, no images"
            raise InputError(f"{self.path} {what}. Its image topics: {listed or 'none'}.")
        if not found:
            topics = ", ".join(sorted(self.reader.topics)) or "none"
            raise InputError(
                f"{self.path} has no sensor_msgs/Image and no CompressedImage. Give another recording; "
                f"this one's topics: {topics}."
            )
        if len(found) > 1:
            raise InputError(f"{self.path} has {len(found)} image topics: {listed}. Choose one: --topic NAME")
        return next(iter(found))

    def messages(self, topic: str | None = None) -> Iterator[tuple[Connection, int, bytes]]:
        """(connection, log time in ns, serialised message) in the order of time. topic: of this one alone."""
        chosen = [c for c in self.reader.connections if topic is None or c.topic == topic]
        try:
            yield from self.reader.messages(chosen)
        except Exception as error:  # damaged bytes raise whatever the decoder comes upon
            raise InputError(_damaged(self.path, error)) from error

    def message(self, connection: Connection, data: bytes) -> Any:
        """Raises InputError for one that is damaged."""
        try:
            return self.reader.deserialize(data, connection.msgtype)
        except Exception as error:  # likewise
            raise InputError(
                f"a message on {connection.topic} is no {connection.msgtype}: {error!s:.200}"
            ) from None

    def refuse_clashes(self, own: Mapping[str, str]) -> None:
        """Raises InputError where topics (-> types) cannot be added."""
        theirs, ours = self.reader.typestore, written_types()
        for topic, kind in own.items():
            if topic in self.reader.topics:
                raise InputError(
                    f"{self.path} already has the topic {topic}. Give others to what is added: --prefix /NAME"
                )
            if kind in theirs.types and theirs.hash_rihs01(kind) != ours.hash_rihs01(kind):
                raise InputError(
                    f"{self.path} has messages of another {kind} than ROS 2 Humble's and later. "
                    "One file cannot hold both."
                )


@contextmanager
def opened(path: Path) -> Iterator[Recording]:
    """Raises InputError where there is no recording that can be read."""
    if not path.exists():
        raise InputError(f"{path} does not exist. Give a recording of ROS 2 (.mcap).")
    if path.suffix == ".bag":
        raise InputError(
            f"{path} is a recording of ROS 1. Convert it: rosbags-convert --src {path} --dst FOLDER"
        )
    if path.is_file() and path.suffix not in FORMS:
        raise InputError(f"{path} is not a recording of ROS 2. Give an .mcap or .db3 file, or its folder.")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        raise InputError(f"{path} is a folder without metadata.yaml. Give a recording of ROS 2 (.mcap).")
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    except OSError:
        raise
    except Exception as error:  # likewise
        raise InputError(_damaged(path, error)) from error
    try:
        yield Recording(path, reader)
    finally:
        reader.close()


def _damaged(path: Path, error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return f"{path} cannot be read ({words:.200}). Was it cut off? `mcap recover` of the MCAP tools mends such files."


class Copy:
    """An MCAP file in the making: channels of the source and our own, chunks compressed with zstd.

    Written beside its destination, so that a file of that name is whole.
    """

    def __init__(self, source: Recording, target: Path, own: Mapping[str, str]) -> None:
        """own: topic -> type of what is added; see `Recording.refuse_clashes`."""
        self.types = written_types()
        self._source, self.target = source, target
        # rosbags makes a folder and names the file in it after the folder.
        self._folder = target.with_name(f".{target.name}.part") / target.stem
        shutil.rmtree(self._folder.parent, ignore_errors=True)
        self._writer = Writer(self._folder, version=VERSION, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        made: dict[str, Connection] = {}  # several publishers of one topic may be one channel
        self._copied: dict[int, Connection] = {}
        for c in source.reader.connections:
            key = repr((c.topic, c.msgtype, c.ext))
            made[key] = made.get(key) or self._copied_connection(c)
            self._copied[c.id] = made[key]
        self._own = {
            topic: self._writer.add_connection(
                topic, kind, typestore=self.types, offered_qos_profiles=[_qos(latched=kind == LABEL_INFO)]
            )
            for topic, kind in own.items()
        }

    def copy(self, connection: Connection, time_ns: int, data: bytes) -> None:
        self._writer.write(self._copied[connection.id], time_ns, data)

    def add(self, topic: str, time_ns: int, message: Any) -> None:
        connection = self._own[topic]
        self._writer.write(connection, time_ns, self.types.serialize_cdr(message, connection.msgtype))

    def finish(self) -> None:
        self._writer.close()
        made = self._folder / f"{self._folder.name}.mcap"
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(self.target)
        shutil.rmtree(self._folder.parent)

    def abandon(self) -> None:
        self._writer.abort()
        shutil.rmtree(self._folder.parent, ignore_errors=True)

    def _copied_connection(self, connection: Connection) -> Connection:
        ext: Any = connection.ext
        store = self._source.reader.typestore
        text = connection.msgdef.data or store.generate_msgdef(connection.msgtype, ros_version=2)[0]
        return self._writer.add_connection(
            connection.topic,
            connection.msgtype,
            msgdef=text,
            rihs01=connection.digest or store.hash_rihs01(connection.msgtype),
            serialization_format=ext.serialization_format,
            offered_qos_profiles=ext.offered_qos_profiles,
        )


def _qos(latched: bool) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST,
        1 if latched else 10,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )
