"""How log lines are written, and what may never stand in one.

A modality puts the patient's name into file names, libraries put file names, URLs and values into messages and
exceptions, and logs travel to where none of that may go. So nothing is searched for and blotted out: only keys in
``allowed.ALLOWED`` are written, each only with the shape of value it is meant for, and everything else is left out or
replaced by ``allowed.WITHHELD``. Messages of libraries, warnings and exceptions are never written: only who, which
class, and where in the code.

A new key is added to ``ALLOWED`` (``tests/logs/test_logs.py`` finds uses of keys that are not there).
"""

from .allowed import ALLOWED, set_key, study_ref
from .writing import Sink, catch_up, configure, finish

__all__ = [
    "ALLOWED",
    "Sink",
    "catch_up",
    "configure",
    "finish",
    "set_key",
    "study_ref",
]
