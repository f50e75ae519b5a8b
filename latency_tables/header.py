"""What is fixed for a whole table: device, runtime, versions, evidence; the YAML file beside the CSV."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from latency_tables.errors import TableError
from latency_tables.evidence import check_evidence
from latency_tables.files import checksum
from latency_tables.record import one_line
from search_spaces import reading
from search_spaces.reading import UnreadableError

SCHEMA = 1
# Rows may stand in one table only where these agree: another runtime version is another set of costs.
IDENTITY = ("device", "chip", "os", "runtime", "runtime_version", "compute_unit", "precision")
# So do these of the details, as far as both tables state them: how the runtime was set, and which phone it was.
SETTINGS = (
    *("threads", "provider", "optimization", "cuda_graph", "model"),
    # a roofline's:
    *("peak_tflops", "bandwidth_gb_s", "efficiency", "conv_tflops", "matmul_tflops", "overhead_us", "dispatch_us"),
)
_TEXT = (*IDENTITY, "toolkit_version", "created", "updated", "notes")
_MAPPINGS = ("additivity", "correction", "reference", "details")


@dataclass(frozen=True)
class Header:
    """The facts that every row of a table shares.

    Attributes:
        device, chip, os, runtime, runtime_version, compute_unit, precision: what the rows were measured on; rows of
            another identity are refused.
        toolkit_version, created, updated: what wrote the table and on which days (ISO dates); every version, where
            several did.
        additivity: evidence from whole networks (``mape``, ``kendall_tau``, ``worst``, ``networks``, ...), or unknown.
        correction: a fit of whole networks on sums of rows, with its cross-validated error (``Correction``).
        reference: the reference workload's latency and spread through the run, or unknown.
        details: anything else worth keeping (commit, seeds), as plain YAML values; rows of other ``SETTINGS`` among
            them are refused like those of another identity.

    Raises:
        TableError: on a missing device or runtime, or a value that is no text, number, list or mapping.
    """

    device: str
    runtime: str
    chip: str = ""
    os: str = ""
    runtime_version: str = ""
    compute_unit: str = ""
    precision: str = ""
    toolkit_version: str = ""
    created: str = ""
    updated: str = ""
    notes: str = ""
    additivity: dict[str, Any] | None = None
    correction: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    details: dict[str, Any] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for name in _TEXT:
            if not isinstance(getattr(self, name), str):
                raise TableError(f"table header: {name} must be text, got {getattr(self, name)!r}; quote it")
            object.__setattr__(self, name, one_line(getattr(self, name)))
        for name in ("device", "runtime"):
            value = getattr(self, name)
            if not value or "/" in value or value.startswith("."):
                raise TableError(f"table header: {name} must be a plain name, got {value!r}; name what was measured")
        for name in _MAPPINGS:
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, dict):
                    raise TableError(f"table header: {name} must be a mapping, got {value!r}; leave it out if unknown")
                object.__setattr__(self, name, _plain(name, value))
                check_evidence(name, getattr(self, name))
        if self.schema != SCHEMA:
            raise TableError(f"table header: schema must be {SCHEMA}, got {self.schema!r}; leave it out")

    def conflicts(self, other: Header) -> list[str]:
        """``"runtime_version 1.30 and 1.31"`` for each identity or setting that both state and that differs."""
        ours, theirs = self.identity(), other.identity()
        shared = (name for name in ours if name in theirs and ours[name] != theirs[name])
        return [f"{name} {ours[name]} and {theirs[name]}" for name in shared]

    def identity(self) -> dict[str, Any]:
        """``IDENTITY`` and ``SETTINGS``, as far as they are stated."""
        details = self.details or {}
        values = {name: getattr(self, name) for name in IDENTITY} | {name: details.get(name) for name in SETTINGS}
        return {name: value for name, value in values.items() if value not in ("", None)}

    def continued(self, other: Header) -> Header:
        """This header with what another run adds, whose header conflicts in nothing: its toolkits, notes and details.

        Rows of both toolkits then stand in the table, so both are named; ``validate`` finds the older one stale.
        """
        toolkits = [*self.toolkit_version.split(", "), *other.toolkit_version.split(", ")]
        notes = (self.notes, "" if other.notes in self.notes else other.notes)
        return dataclasses.replace(
            self,
            toolkit_version=", ".join(dict.fromkeys(part for part in toolkits if part)),
            notes=" ".join(part for part in notes if part),
            details={**(self.details or {}), **(other.details or {})} or None,
        )

    def to_mapping(self) -> dict[str, Any]:
        """The YAML mapping, schema first, empty fields left out."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        ordered = {"schema": values.pop("schema"), **values}
        return {name: value for name, value in ordered.items() if value not in ("", None)}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Header:
        """A header from its YAML mapping.

        Raises:
            TableError: on an unknown or missing field, or one of the wrong kind.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in mapping:
            if name not in known:
                raise TableError(f"table header: unknown field {name!r}; known fields: {', '.join(sorted(known))}")
        for name in ("device", "runtime"):
            if name not in mapping:
                raise TableError(f"table header: no {name}; name what was measured")
        return cls(**mapping)

    def over(self, theirs: Header, base: Header | None) -> Header:
        """``theirs`` with the fields that this header changed since ``base`` (all that it states, without a base)."""
        changes = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            changed = value not in ("", None) if base is None else value != getattr(base, field.name)
            if changed:
                changes[field.name] = value
        return dataclasses.replace(theirs, **changes)


def dump_header(mapping: Mapping[str, Any], csv_checksums: list[str]) -> bytes:
    """The YAML bytes: the mapping, then its checksum and those of the CSV contents that belong to it."""
    sealed = {**mapping, "header_checksum": checksum(_canonical(mapping)), "csv_checksums": csv_checksums}
    return yaml.safe_dump(sealed, sort_keys=False, allow_unicode=True, width=120).encode()


def parse_header(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """The mapping and the CSV checksums of a header file, before migration.

    Raises:
        TableError: if the bytes are no YAML mapping of ours, or one that does not match its own checksum.
    """
    mapping = parse_yaml(data)
    schema = mapping.get("schema")
    if isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA:
        raise TableError(
            f"schema {schema} is newer than the {SCHEMA} known here; update temporal-nas to read this table"
        )
    sums = mapping.pop("csv_checksums", None)
    own = mapping.pop("header_checksum", None)
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise TableError(f"schema is {schema!r}; a table's header states its schema, 1 to {SCHEMA}: restore the file")
    if not isinstance(sums, list) or not sums or not all(isinstance(item, str) for item in sums):
        raise TableError("no csv_checksums: the header is cut short; restore the file from git or measure again")
    if own != checksum(_canonical(_plain("header", mapping))):
        raise TableError(
            "the header does not match its header_checksum: restore the file, or accept the edit with "
            "`python -m latency_tables seal CSV`"
        )
    return mapping, sums


def parse_yaml(data: bytes) -> dict[str, Any]:
    """A YAML mapping of plain values.

    Raises:
        TableError: on anything else, in one line.
    """
    try:
        value = reading.parse_yaml(data.decode())
    except UnreadableError as error:
        raise TableError(f"{error}; restore the file") from None
    except UnicodeDecodeError as error:
        raise TableError(f"is no text (byte {error.start} is no UTF-8); restore the file") from None
    if not isinstance(value, dict):
        raise TableError("no YAML mapping of field: value; restore the file")
    return value


def _plain(path: str, value: Any) -> Any:
    """``value`` as text, numbers, lists and mappings alone, numpy scalars converted."""
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TableError(f"table header: {path} has the field name {name!r}; use text")
        return {str(name): _plain(f"{path}.{name}", item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(f"{path}[{index}]", item) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, str)):
        return value
    item = getattr(value, "item", None)
    number = item() if callable(item) else value
    if isinstance(number, (bool, int)):
        return number
    if isinstance(number, float) and math.isfinite(number):
        return number
    raise TableError(f"table header: {path} is {value!r}; use text, finite numbers, lists or mappings")


def _canonical(mapping: Mapping[str, Any]) -> bytes:
    return json.dumps(mapping, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
