"""The C core; native/torpor.h declares and explains its functions."""

from typing import Any

from cffi import FFI

ffi: FFI
lib: Any
