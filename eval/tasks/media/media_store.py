"""Images and videos of an evaluation set, read from their files when they are needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .images import open_image
from .video import Clip

Media = bytes | Path | Clip
HELD_GROUPS = 4


def decode(media: Media, name: str) -> Image.Image:
    """An image as RGB; `name` is what messages call it."""
    if isinstance(media, Clip):
        raise ValueError(f"{name} is a video, not an image: ask for its frames (TaskSet.visuals)")
    return open_image(media, name)


def as_media(value: Any, folder: Path) -> Media:
    """One value of an image column: encoded bytes, a struct with bytes or a path, or the name of a file in `folder`.

    Raises
    ------
    ValueError, FileNotFoundError
        For anything else and for a file that is not there.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        path = folder / value
        if not path.is_file():
            raise FileNotFoundError(f"no such image: {path}")
        return path
    what = "empty" if value is None or value in ("", b"") else f"a {type(value).__name__}"
    raise ValueError(f"the image is {what}, it should be encoded bytes or the name of a file")


@dataclass(frozen=True)
class Cell:
    """Where an image lies in a parquet file: row `row` of row group `group`, and which one if the row has a list."""

    path: Path
    column: str
    group: int
    row: int
    item: int | None = None


class ParquetCells:
    """Reads cells of a parquet file's image column; the row groups used last are held."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Path, str, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_held": OrderedDict()}  # another process reads for itself

    def read(self, cell: Cell) -> Any:
        """The cell's value."""
        import pyarrow.parquet as pq

        key = (cell.path, cell.column, cell.group)
        if key not in self._held:
            self._held[key] = pq.ParquetFile(cell.path).read_row_group(cell.group, columns=[cell.column])[cell.column]
            while len(self._held) > HELD_GROUPS:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        value = self._held[key][cell.row]
        return value.as_py() if cell.item is None else value[cell.item].as_py()


class MediaStore(Mapping[str, Media]):
    """Media by id.

    Parameters
    ----------
    readers : mapping
        For each id what reads it: a function without arguments that other processes can be given too.
    places : mapping
        For each id the file and row that it comes from, for messages.
    """

    def __init__(self, readers: Mapping[str, Callable[[], Media]], places: Mapping[str, str]):
        self._readers, self._places = dict(readers), dict(places)

    def __getitem__(self, media_id: str) -> Media:
        try:
            return self._readers[media_id]()
        except FileNotFoundError as e:
            raise FileNotFoundError(f"{self.place(media_id)}: {e}") from None
        except (ValueError, OSError) as e:
            raise ValueError(f"{self.place(media_id)}: {e}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def place(self, media_id: str) -> str:
        """File and row of an id."""
        return self._places.get(media_id, "unknown file")

    def part(self, media_ids: Iterable[str]) -> MediaStore:
        """The store with these ids alone."""
        ids = list(dict.fromkeys(media_ids))
        return MediaStore({i: self._readers[i] for i in ids}, {i: self.place(i) for i in ids})

    def joined(self, other: MediaStore) -> MediaStore:
        """Both stores' media."""
        return MediaStore(self._readers | other._readers, self._places | other._places)


def part_of(images: Mapping[str, Media], questions: Iterable[Any]) -> Mapping[str, Media]:
    """The media of `questions` alone."""
    ids = dict.fromkeys(i for q in questions for i in q.media)
    return images.part(ids) if isinstance(images, MediaStore) else {i: images[i] for i in ids}
