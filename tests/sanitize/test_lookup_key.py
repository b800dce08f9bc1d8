"""The lookup credential: how it is read from a file or a variable."""

import os
from pathlib import Path

import pytest

from sanitizer.sanitize.lookup_key import KeyFile, checked_key, read_key


@pytest.mark.parametrize(
    ("content", "key"),
    [
        pytest.param("sk-1", "sk-1", id="a key"),
        pytest.param("\n sk-1 \r\n\n", "sk-1", id="white space around a key"),
        pytest.param("0123abcd", "0123abcd", id="a key without the prefix sk-"),
        pytest.param("", None, id="empty"),
        pytest.param(" \n", None, id="only white space"),
        pytest.param("sk-1 sk-2", None, id="two keys in one line"),
        pytest.param("sk-1\nsk-2", None, id="two keys in two lines"),
        pytest.param("sk-1\x00", None, id="a control character"),
        pytest.param("sk-\xe4", None, id="not ASCII"),
        pytest.param("k" * 512, "k" * 512, id="the longest key"),
        pytest.param("k" * 513, None, id="a key that is too long"),
        pytest.param("k" + "\n" * 4095, "k", id="the longest file"),
        pytest.param("k" + "\n" * 4096, None, id="a file that is too long"),
    ],
)
def test_key(content: str, key: str | None, tmp_path: Path) -> None:
    """The content must be exactly one key that can be sent in a field line. The error does not repeat the content."""
    path = tmp_path / "key"
    path.write_bytes(content.encode())
    if key is not None:
        assert (read_key(str(path)), checked_key(content)) == (key, key)
        return
    with pytest.raises(ValueError, match="key") as refused:
        read_key(str(path))
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((f"{quote}sk-1{quote}\n".encode(), "it has quotes around it") for quote in ('"', "'", "`")),
        (b'"sk-1', "it has quotes around it"),
        (b"sk-1'", "it has quotes around it"),
        ("\ufeffsk-1".encode(), "begins with a byte order mark"),
        ('\ufeff"sk-1"'.encode(), "begins with a byte order mark"),
        ("sk-1\r\n".encode("utf-16"), "begins with a byte order mark"),
        (b"\xfe\xff" + "sk-1".encode("utf-16-be"), "begins with a byte order mark"),
    ],
)
def test_key_in_a_wrapping(content: bytes, words: str, tmp_path: Path) -> None:
    """Quotes and byte order marks around a key are refused, with an error that names them."""
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^one key and nothing else: .*{words}") as refused:
        read_key(str(path))
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"), [("'sk-1'", "it has quotes around it"), ("\ufeffsk-1", "begins with a byte order mark")]
)
def test_text_in_a_wrapping(text: str, words: str) -> None:
    """Quotes and byte order marks in a variable's value are refused likewise."""
    with pytest.raises(ValueError, match=words):
        checked_key(text)


class TestKeyFile:
    """A key file that changes."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "key"
        path.write_text("sk-1\n")
        return path

    def test_rewritten(self, path: Path) -> None:
        """New content in the same file is read."""
        key = KeyFile(str(path), pytest.fail)
        assert [key(), key()] == ["sk-1", "sk-1"]
        path.write_text("sk-two\n")
        assert key() == "sk-two"

    def test_touched(self, path: Path) -> None:
        """New content of the same size is read if the modification time differs."""
        key = KeyFile(str(path), pytest.fail)
        path.write_text("sk-2\n")
        os.utime(path, ns=(1, 1))
        assert key() == "sk-2"

    def test_nothing_has_changed(self, path: Path) -> None:
        """A file with the same inode, modification time and size is not read again."""
        key = KeyFile(str(path), pytest.fail)
        status = path.stat()
        path.write_text("sk-2\n")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert key() == "sk-1"

    def test_renamed(self, path: Path) -> None:
        """A file that replaces the old one is read, even with the same size and modification time."""
        key = KeyFile(str(path), pytest.fail)
        status = path.stat()
        other = path.with_name("other")
        other.write_text("sk-2\n")
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(path)
        assert key() == "sk-2"

    def test_kubernetes(self, tmp_path: Path) -> None:
        """A new version of a mounted Secret is read: the file is a link through a directory link, which is replaced."""
        for name, text in (("v1", "sk-1"), ("v2", "sk-2")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "key").write_text(text)
            os.utime(tmp_path / name / "key", ns=(1, 1))
        (tmp_path / "..data").symlink_to("v1")
        path = tmp_path / "key"
        path.symlink_to("..data/key")
        key = KeyFile(str(path), pytest.fail)
        assert key() == "sk-1"
        (tmp_path / "..new").symlink_to("v2")
        (tmp_path / "..new").replace(tmp_path / "..data")
        assert key() == "sk-2"

    def test_last_good_one(self, path: Path) -> None:
        """While the file holds no valid key, the last key stays in use. The same reason in a row is reported once."""
        reasons: list[str] = []
        key = KeyFile(str(path), reasons.append)
        path.unlink()
        assert [key(), key()] == ["sk-1", "sk-1"]
        assert reasons == ["No such file or directory"]
        path.write_text("")
        assert [key(), key()] == ["sk-1", "sk-1"]
        path.write_text("two words")
        assert key() == "sk-1"
        assert [reason[:7] for reason in reasons[1:]] == ["one key"]
        path.write_text("sk-2")
        assert key() == "sk-2"
        path.write_text("two words")
        assert key() == "sk-2"
        assert len(reasons) == 3

    def test_gone_after_the_start(self, path: Path) -> None:
        """The file is read when the object is made, so it may be deleted before the first use."""
        reasons: list[str] = []
        key = KeyFile(str(path), reasons.append)
        path.unlink()
        assert key() == "sk-1"

    def test_never_there(self, tmp_path: Path) -> None:
        """Without a file there is no key."""
