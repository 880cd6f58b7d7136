from pathlib import Path

import pytest

from advcourse.files import read_verified, sha256, write_whole


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("moment", ["while writing", "before the move"])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: type[BaseException]
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    def half(partial: Path, content: bytes) -> None:
        with partial.open("wb") as stream:
            stream.write(content[:1])
        raise error

    def no_move(*_: object) -> None:
        raise error

    if moment == "while writing":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr("os.replace", no_move)
    with pytest.raises(error):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_whole_file_replaces_the_old_one_in_a_folder_that_need_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "weights.bin"
    for content in b"first", b"second":
        write_whole(path, content)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


def test_verified_bytes_are_the_file_s_or_an_error_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    with pytest.raises(FileNotFoundError, match=r"weights\.bin is missing: train it"):
        read_verified(path, sha256(b"content"), "train it")
    path.write_bytes(b"content")
    assert read_verified(path, sha256(b"content"), "train it") == b"content"
    path.write_bytes(b"c0ntent")
    with pytest.raises(ValueError, match=r"weights\.bin is damaged .*: train it"):
        read_verified(path, sha256(b"content"), "train it")
