"""A ZIP that means harm: each kind is refused or read harmlessly, in bounded time and memory.

More facts about ZIPs are in `test_dataset.py`.
"""

import bz2
import lzma
import struct
import time
from functools import partial

import hostile
import pytest
from hostile import MIB, Member
from pictures import encoded, picture

from finetune import dataset, runs
from finetune.dataset import intake
from finetune.errors import DatasetError

here = partial(dataset.unpack, take=intake.take)
RED, BLUE, GREEN = (encoded(picture(seed)) for seed in (1, 2, 3))
GOOD = Member(b"good.png", RED)


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "runs")


@pytest.fixture
def unpack(tmp_path, run):
    def unpack(content, **options):
        (tmp_path / "in.zip").write_bytes(content)
        return here(tmp_path / "in.zip", run, **options)

    return unpack


def reasons(found):
    return {one.file: one.reason for one in found.ignored}


def names(found):
    return [image.source for image in found.images]


# --- countless files


def test_a_million_files_are_refused_at_once(tmp_path):
    """A list of a million files is refused by its length, before it is read into memory."""
    count, line = 1_000_000, Member(b"a", b"").central(0)
    (tmp_path / "in.zip").write_bytes(line * count + hostile.end(count, len(line) * count, 0))

    spent = hostile.spent(tmp_path / "in.zip", tmp_path / "out")

    assert "20,000 is the limit" in spent["said"]["error"]
    assert spent["seconds"] < 2 and spent["mib"] < 64


def test_the_longest_list_that_is_read_is_affordable(tmp_path):
    """As many files as the list's largest size allows are counted, and refused, in bounded memory."""
    line = Member(b"a", b"").central(0)
    count = 8 * MIB // len(line)
    (tmp_path / "in.zip").write_bytes(line * count + hostile.end(count, len(line) * count, 0))

    spent = hostile.spent(tmp_path / "in.zip", tmp_path / "out")

    assert f"holds {count:,} files" in spent["said"]["error"]
    assert spent["seconds"] < 20 and spent["mib"] < 400


def test_as_many_files_as_allowed_are_listed_in_short(unpack):
    """Thousands of files that are no pictures are counted, and only the first are named."""
    others = [Member(b"%d.bin" % number, b"") for number in range(2000)]

    found = unpack(hostile.zip_bytes([GOOD, *others]))

    assert len(found.ignored) == 501
    assert found.ignored[-1].reason == "1,500 more files were left out"


@pytest.mark.parametrize("size", [2**60, 2**31])
def test_a_list_larger_than_the_file_is_damage(unpack, size):
    """A ZIP64 record that asks for more memory than the machine has is not believed."""
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(GOOD.local()), 1)

    with pytest.raises(DatasetError, match="damaged"):
        unpack(GOOD.local() + end64 + locator + hostile.end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF))


# --- bombs


def test_files_at_the_same_place_are_refused(unpack):
    """Many names for the same bytes are refused before one is read."""
    same = [Member(b"%d.png" % number, RED, local_name=b"0.png", offset=0) for number in range(4)]

    with pytest.raises(DatasetError, match="lie on top of each other"):
        unpack(hostile.zip_bytes(same))


def test_files_that_quote_each_other_are_refused(unpack):
    """A file whose content is the header and content of the next, and so on, is a bomb without equal places.

    Source: D. Fifield 2019, "A better zip bomb".
    """
    inner = Member(b"b.png", bytes(1000))
    outer = Member(b"a.png", inner.local(), method=hostile.STORED)
    data = outer.local()
    lines = outer.central(0) + inner.central(len(data) - len(inner.local()))

    with pytest.raises(DatasetError, match="lie on top of each other"):
        unpack(data + lines + hostile.end(2, len(lines), len(data)))


def test_a_file_over_the_list_of_files_is_refused(unpack):
    """The last file may not claim the list of files as its content either."""
    with pytest.raises(DatasetError, match="lie on top of each other"):
        unpack(hostile.zip_bytes([Member(b"a.png", RED, packed_size=10**6)]))


@pytest.mark.parametrize(
    ("method", "pack"), [(12, bz2.compress), (14, partial(lzma.compress, format=lzma.FORMAT_ALONE)), (93, bytes)]
)
def test_ways_to_pack_that_unpack_in_one_piece_are_not_read(unpack, method, pack):
    """bzip2, LZMA and Zstandard would turn one block into gigabytes before anybody can count."""
    bomb = Member(b"b.png", bytes(MIB), method=method, packed=pack(bytes(MIB)))

    found = unpack(hostile.zip_bytes([GOOD, bomb]))

    assert reasons(found) == {"b.png": "is compressed in a way that is not read; pack it the normal way"}


def test_a_deflate_bomb_costs_little(tmp_path):
    """Hundreds of megabytes of zeros are stopped where they have become suspicious."""
    bomb = Member(b"a.png", packed=hostile.deflated(bytes(300 * MIB)), size=300 * MIB)
    (tmp_path / "in.zip").write_bytes(hostile.zip_bytes([bomb]))

    spent = hostile.spent(tmp_path / "in.zip", tmp_path / "out")

    assert "200 times" in spent["said"]["error"]
    assert spent["seconds"] < 10 and spent["mib"] < 200


# --- what a list of files can lie about


@pytest.mark.parametrize("size", [len(RED) - 40, 1, 0])
def test_content_longer_than_declared_is_damage(unpack, size):
    """No more of a file is read than its declared size, and then its checksum is wrong."""
    found = unpack(hostile.zip_bytes([Member(b"a.png", BLUE), Member(b"b.png", RED, size=size)]))

    assert names(found) == ["a.png"]
    assert reasons(found)["b.png"] in ("is damaged inside the ZIP", "is empty (0 bytes)")


def test_content_shorter_than_declared_is_what_it_is(unpack):
    """A size that promises more than there is changes nothing: the checksum decides."""
    assert names(unpack(hostile.zip_bytes([Member(b"a.png", RED, size=len(RED) + 40)]))) == ["a.png"]


def test_the_size_before_the_content_does_not_matter(unpack):
    """Of two sizes that contradict each other, the one in the list of files counts."""
    assert names(unpack(hostile.zip_bytes([Member(b"a.png", RED, local_size=2**31)]))) == ["a.png"]


def test_a_file_of_two_names_is_not_read(unpack):
    """A file that is called otherwise before its content than in the list is damaged."""
    found = unpack(hostile.zip_bytes([GOOD, Member(b"b.png", BLUE, local_name=b"../b.png")]))

    assert reasons(found) == {"b.png": "is damaged inside the ZIP"}


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666, 0o140666])
def test_what_is_no_file_is_ignored(unpack, mode):
    """Links, devices, pipes and sockets are neither made nor followed."""
    found = unpack(hostile.zip_bytes([GOOD, Member(b"b.png", BLUE, mode=mode)]))

    assert names(found) == ["good.png"]
    assert reasons(found)["b.png"].endswith(", not a file")


@pytest.mark.parametrize("flags", [0x1, 0x41, 0x40])
def test_encryption_is_named(unpack, flags):
    """Each kind of encryption is refused in the same words."""
    with pytest.raises(DatasetError, match="password"):
        unpack(hostile.zip_bytes([Member(b"a.png", RED, flags=flags)]))


@pytest.mark.parametrize("method", [1, 2, 6, 9, 10, 18, 19, 20, 94, 95, 96, 97, 98, 99, 0xFFFF])
def test_odd_ways_to_pack_are_named(unpack, method):
    """Each way to pack that there is a number for costs only the file."""
    found = unpack(hostile.zip_bytes([GOOD, Member(b"b.png", BLUE, method=method)]))

    assert "compressed in a way" in reasons(found)["b.png"]


def test_a_file_beyond_the_end_is_refused(unpack):
    """A place behind the end of the ZIP, by the numbers of ZIP64, is no place."""
    extra = struct.pack("<2HQ", 1, 8, 2**63)
    far = Member(b"b.png", BLUE, offset=0xFFFFFFFF, extra=extra)

    with pytest.raises(DatasetError, match="on top of each other"):
        unpack(hostile.zip_bytes([GOOD, far]))


@pytest.mark.parametrize("extra", [b"\1\0\4\0\0\0\0\0", b"\1\0\xff\xff", b"\1\0"])
def test_a_broken_zip64_field_is_damage(unpack, extra):
    """Numbers of ZIP64 that are cut off or too short make the list unreadable, or change nothing."""
    try:
        found = unpack(hostile.zip_bytes([GOOD, Member(b"b.png", BLUE, offset=0xFFFFFFFF, extra=extra)]))
    except DatasetError as error:
        assert error.hint
    else:
        assert names(found) == ["good.png"]


# --- names


@pytest.mark.parametrize("first", ["a.png", "é.png"])
@pytest.mark.parametrize("second", ["a.png", "e\u0301.png"])
def test_of_equal_names_the_first_is_used(unpack, first, second):
    """A name that was there before, also if it is only written otherwise, is not another file."""
    found = unpack(hostile.zip_bytes([Member(first.encode(), RED), Member(second.encode(), BLUE)]))

    is_same = first[0] == second[0] or first[0] + second[0] == "ée"
    assert (len(found.images), len(found.ignored)) == ((1, 1) if is_same else (2, 0))


def test_names_that_differ_in_case_are_two_files(unpack):
    """Two files of a disk that tells capital letters apart are both used, each under its number."""
    assert names(unpack(hostile.zip_bytes([Member(b"A.png", RED), Member(b"a.png", BLUE)]))) == ["A.png", "a.png"]


def test_a_name_of_64_kib_is_ignored_in_short(unpack):
    """A name as long as a ZIP can hold is not carried any further."""
    found = unpack(hostile.zip_bytes([GOOD, Member(b"x" * 65_000 + b".png", BLUE)]))

    assert len(found.ignored[0].file) < 100
    assert found.ignored[0].reason == "its name is longer than 400 letters"


@pytest.mark.parametrize("letter", ["\0", "\n", "\r", "\x1b", "\x7f", "\u202e", "\u2066", "\u200b", "\u2028", "\ufeff"])
def test_unseen_letters_in_names_are_replaced(unpack, letter):
    """Nothing that cannot be seen, or that turns text around, comes through in a name."""
    found = unpack(hostile.zip_bytes([Member(f"a{letter}b.png".encode(), RED), Member(f"c{letter}.exe".encode())]))

    assert (found.images[0].source, found.ignored[0].file) == ("a�b.png", "c�.exe")


def test_a_nul_hides_no_ending(unpack):
    """What a name has behind a NUL counts, as it does for whoever looks at the list."""
    found = unpack(hostile.zip_bytes([GOOD, Member(b"a.png\0.exe", BLUE), Member(b"d/\0b.png", GREEN)]))

    assert names(found) == ["d/�b.png", "good.png"]
    assert reasons(found) == {"a.png�.exe": "is not a picture"}


def test_a_file_without_a_name_is_ignored(unpack):
    """An empty name is no reason to stumble."""
    assert reasons(unpack(hostile.zip_bytes([GOOD, Member(b"", BLUE)]))) == {"(no name)": "has no name"}


def test_a_name_that_is_no_utf8_makes_the_list_unreadable(unpack):
    """A ZIP that promises UTF-8 and holds something else is damaged."""
    with pytest.raises(DatasetError, match="damaged"):
        unpack(hostile.zip_bytes([GOOD, Member(b"\xff\xfe.png", BLUE)]))


# --- what is around a ZIP


@pytest.mark.parametrize("before", [b"#!/bin/sh\n", b"<html><script>", RED, b"%PDF-1.7\n", b"MZ" + bytes(1000)])
def test_a_zip_behind_something_else_is_a_zip(unpack, before):
    """A file that is also a program, a page or a picture is read as the ZIP that it is, and kept as pixels."""
    whole = hostile.zip_bytes([Member(b"a.png", BLUE)])

    assert names(unpack(before + whole)) == ["a.png"]


def test_what_follows_a_zip_is_not_read(unpack):
    """Bytes behind the end record change nothing."""
    assert names(unpack(hostile.zip_bytes([GOOD]) + b"<script>" * 100)) == ["good.png"]


def test_of_two_ends_the_last_counts(unpack):
    """Of two ZIPs in one file the last is read, as other programs do."""
    assert names(unpack(hostile.zip_bytes([Member(b"first.png", RED)]) + hostile.zip_bytes([GOOD]))) == ["good.png"]


def test_signatures_in_a_comment_lead_nowhere(unpack):
    """An end record within the comment is no way to hide files: what it shows is checked like everything else."""
    fake = hostile.end(1, 46, 0)

    with pytest.raises(DatasetError):
        unpack(hostile.zip_bytes([GOOD], comment=fake + b"PK\1\2 and more"))


def test_a_zip_cut_off_anywhere_is_refused(unpack):
    """Wherever an upload was cut off, it is refused in words."""
    whole = hostile.zip_bytes([GOOD, Member(b"b.txt", b"a thing")])

    for length in range(1, len(whole) - 1, 7):
        with pytest.raises(DatasetError):
            unpack(whole[:length])


def test_any_changed_byte_is_survived(unpack):
    """A ZIP with one byte changed, at whatever place, is read or refused in words."""
    whole = hostile.zip_bytes([GOOD, Member(b"a.txt", b"a thing")])
    started = time.monotonic()
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        try:
            found = unpack(bytes(changed))
        except DatasetError as error:
            assert error.message
        else:
            assert found.images

    assert time.monotonic() - started < 60
