"""Text files that are mostly numbers, read in pieces: memory holds one piece and what was asked for."""

from __future__ import annotations

import re
import warnings
from typing import IO

import numpy as np

from ecdlib.density.core import Floats

PIECE = 2**22  #: bytes that are read at once
LONGEST_LINE = 100_000  #: bytes of a line that is read as text

#: Digits and points, signs, white space; whatever else is kept as it is.
_KINDS = bytes.maketrans(b"0123456789.-+\t\n\v\f\r", b"00000000000--     ")
#: Fortran drops the E before an exponent of three digits.
_SHORT_EXPONENT = re.compile(rb"(?<=[0-9.])(?=[-+][0-9]{3}(?:\s|$))")


class Surplus(ValueError):
    """More numbers than were asked for."""


class NumbersFile:
    """A stream of lines and blocks of numbers.

    Args:
        stream: binary, from its start.
        size: bytes that it can have at most.
    """

    def __init__(self, stream: IO[bytes], size: int):
        self.stream, self.size = stream, size
        self.most_numbers = size // 2 + 1  #: a digit and a separator each
        self._read, self._at, self._text = 0, 0, b""

    def _more(self) -> bool:
        """Read a piece; False at the end."""
        piece = self.stream.read(PIECE)
        self._read += len(piece)
        if self._read > self.size:
            raise ValueError("too large when unpacked")
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)

    def line(self) -> str | None:
        """The next line, without its end; None after the last one.

        Raises:
            ValueError: no text, or a line that has no end.
        """
        while (end := self._text.find(b"\n", self._at)) < 0:
            if len(self._text) - self._at > LONGEST_LINE:
                raise ValueError("a line without end")
            if not self._more():
                end = len(self._text)
                if self._at == end:
                    return None
                break
        if end - self._at > LONGEST_LINE:
            raise ValueError("a line without end")
        line, self._at = self._text[self._at : end], end + 1
        return line.decode("utf-8")

    def numbers(self, n: int) -> Floats:
        """The next ``n`` numbers; the last one ends its line.

        Raises:
            Surplus: more numbers in the last line.
            ValueError: fewer numbers, or something that is not a number.
        """
        found = np.empty(n)
        filled = 0
        while filled < n:
            end = max(self._text.rfind(space) for space in (b" ", b"\n", b"\t"))
            if end < self._at:
                if len(self._text) - self._at > LONGEST_LINE:
                    raise ValueError("a number without end")
                if self._more():
                    continue
                end = len(self._text)
                if self._at >= end:
                    raise ValueError(f"{filled} numbers where {n} are needed")
            text = self._text[self._at : end + 1]
            printed = np.frombuffer(text, dtype=np.uint8) > 32
            starts = np.flatnonzero(printed & ~np.concatenate([[False], printed[:-1]]))  # of words
            if filled + len(starts) > n:
                line_end = text.find(b"\n", starts[n - filled - 1])
                line_end = len(text) if line_end < 0 else line_end
                if starts[n - filled] < line_end:
                    raise Surplus(f"more than {n} numbers")
                starts, text = starts[: n - filled], text[: line_end + 1]
            if len(starts):
                found[filled : filled + len(starts)] = parse_numbers(text, len(starts))
            filled += len(starts)
            self._at += len(text)
        return found


def parse_numbers(text: bytes, n: int) -> Floats:
    """Exactly ``n`` numbers of a text, separated by white space.

    Example:
        >>> parse_numbers(b" 1.5 -.2E+01\\n 0.69880420394-101", 3)
        array([ 1.50000000e+000, -2.00000000e+000,  6.98804204e-102])

    Raises:
        ValueError: a different count of numbers, or something that is not a number.
    """
    if b"0-" in text.translate(_KINDS):
        text = _SHORT_EXPONENT.sub(b"E", text)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # what older numpy says of text that is not a number
        try:
            values = np.fromstring(text, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise ValueError("something that is not a number") from error
    if len(values) != n:  # each word must be one number
        raise ValueError(f"{len(values)} numbers in {n} words")
    return values
