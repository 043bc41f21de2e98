"""What every runtime that opens single graphs has to do with cases of the conformance kit."""

from __future__ import annotations
