"""ggml's own conversions between storage types, called in the library that the engine runs on (xllamacpp).

The published wheels for Linux and macOS export them; so a file that is written here is what llama.cpp itself would
write, and nothing more has to be installed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

from trimtab.engines.llama_cpp.gguf import BY_NAME, Type
from trimtab.errors import Unsupported

F32: Final = BY_NAME["F32"]
# Storage type -> the function that reads it: (data, floats, count of values).
_TO_FLOATS: Final = {
    "F16": "ggml_fp16_to_fp32_row",
    "BF16": "ggml_bf16_to_fp32_row",
    **{name: f"dequantize_row_{name.lower().replace('_k', '_K')}" for name in BY_NAME if name.startswith(("Q", "IQ"))},
}
_FROM_FLOATS: Final = "ggml_quantize_chunk"
_VALID: Final = "ggml_validate_row_data"


class Ggml:
    """The conversions. Calls let the GIL go, and may come from several threads at once."""

    def __init__(self) -> None:
        """Raises Unsupported, with the way out, if the installed xllamacpp does not export them."""
        import xllamacpp

        library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)

        def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            try:
                found = library[name]
            except AttributeError as error:
                raise Unsupported(
                    f"xllamacpp {xllamacpp.__version__} in this environment does not export `{name}`, which quantizing "
                    f"takes: install its published wheel, pip install --force-reinstall --only-binary=:all: xllamacpp"
                ) from error
            found.restype, found.argtypes = result, arguments
            return found

        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._to_floats = {
            kind: function(name, None, ctypes.c_char_p, pointer, count) for kind, name in _TO_FLOATS.items()
        }
        self._from_floats = function(
            _FROM_FLOATS, ctypes.c_size_t, ctypes.c_int, pointer, pointer, count, count, count, pointer
        )
        self._valid = function(_VALID, ctypes.c_bool, ctypes.c_int, pointer, ctypes.c_size_t)

    def convert(self, data: bytes, source: Type, target: Type, row_values: int) -> bytes:
        """Whole rows of `row_values` values each in another type, which must hold them in whole blocks.

        Raises ValueError if they hold what a model cannot (NaN, infinity), ArithmeticError if ggml wrote another size.
        """
        rows = len(data) // source.size(row_values)
        floats: Any = data
        if source is not F32:
            floats = (ctypes.c_float * (rows * row_values))()
            self._to_floats[source.name](data, floats, rows * row_values)
        finite: bool = self._valid(F32.number, floats, F32.size(rows * row_values))
        found = ctypes.create_string_buffer(rows * target.size(row_values))
        written = self._from_floats(target.number, floats, found, 0, rows, row_values, None)
        if written != len(found):
            raise ArithmeticError(f"ggml wrote {written} bytes of {target.name}, not {len(found)}")
        if not finite or not self._valid(target.number, found, written):
            raise ValueError("not finite")
        return found.raw
