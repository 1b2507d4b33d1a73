"""The forms of an import: the file, and which of its columns is what."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec
from django import forms
from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.forms import BoundField
from unfold.widgets import (
    UnfoldAdminFileFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from cdp.imports import ledger, values
from cdp.imports.mapping import CONTAINERS, EMAIL, EXTERNAL, FIELDS, LEFT_OUT, Mapping, guess
from cdp.imports.records import FORMATS, Layout, format_of, records
from cdp.models import EventImport, Source
from cdp.processing.decode import TYPES
from martech.lib.errors import MartechError

SUGGESTED = (*FIELDS, EMAIL, *(f"{one}." for one in (*CONTAINERS, EXTERNAL)), LEFT_OUT)
# Of an NDJSON file: the objects whose keys are offered, and the keys at the most.
LOOKED_AT, MOST_KEYS = 100, 100


class UploadForm(forms.ModelForm):
    """A file and whose events it holds."""

    file = forms.FileField(
        widget=UnfoldAdminFileFieldWidget, help_text="CSV with a header row, or one JSON object a line; may end in .gz"
    )
    file_format = forms.ChoiceField(
        label="Format", required=False, widget=UnfoldAdminSelectWidget,
        choices=[("", "What its name says"), *((one, one) for one in FORMATS)],
    )  # fmt: skip

    class Meta:
        model = EventImport
        fields = ["source", "file", "file_format"]

    def clean_source(self) -> Source:
        """Refuse a source that may not import."""
        try:
            ledger.check_source(self.cleaned_data["source"])
        except MartechError as error:
            raise forms.ValidationError(error.message) from error
        return self.cleaned_data["source"]

    def clean_file(self) -> UploadedFile:
        """Refuse a file that is too large."""
        file: UploadedFile = self.cleaned_data["file"]
        size, most = file.size or 0, settings.IMPORT_UPLOAD_BYTES
        if size > most:
            raise forms.ValidationError(
                f"The file has {size / 2**20:,.0f} MiB; at most {most / 2**20:,.0f} are taken here. Use manage.py "
                "import_events, or raise IMPORT_UPLOAD_MB."
            )
        return file

    def clean(self) -> dict[str, Any] | None:
        """Find the format by the file's name, where none is chosen."""
        given = super().clean() or {}
        if given.get("file") and not given.get("file_format"):
            try:
                given["file_format"] = format_of(str(given["file"].name))
            except MartechError as error:
                self.add_error("file_format", f"{error.message.partition(':')[0]}. Choose one.")
        return given


class MappingForm(forms.Form):
    """What the rows mean, and a pair of fields for each column."""

    whole = forms.BooleanField(label="Each line is a message already", required=False, widget=UnfoldBooleanSwitchWidget)
    type = forms.ChoiceField(
        label="Type of all rows", required=False, widget=UnfoldAdminSelectWidget,
        choices=[("", "What a column says"), *((one, one) for one in sorted(TYPES))],
    )  # fmt: skip
    event = forms.CharField(label="Event of all rows", required=False, widget=UnfoldAdminTextInputWidget)
    time_zone = forms.CharField(label="Zone of times without one", widget=UnfoldAdminTextInputWidget)
    time_format = forms.CharField(
        label="Form of times", required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "ISO 8601, or %d.%m.%Y"}),
    )  # fmt: skip
    delimiter = forms.CharField(label="Delimiter", required=False, strip=False, max_length=1,
                                widget=UnfoldAdminTextInputWidget)  # fmt: skip
    encoding = forms.CharField(label="Encoding", widget=UnfoldAdminTextInputWidget)
    only_mapped = forms.BooleanField(
        label="Leave out columns without a field", required=False, widget=UnfoldBooleanSwitchWidget
    )

    def __init__(self, *args: Any, columns: tuple[str, ...], file_format: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.columns = columns
        # The fields of the other format.
        for name in ("whole",) if file_format == "csv" else ("delimiter",):
            del self.fields[name]
        for number, column in enumerate(columns):
            hints = {"list": "mt-fields", "placeholder": "properties, or traits", "aria-label": f"Field of {column}"}
            self.fields[f"field_{number}"] = forms.CharField(
                required=False, label=f"Field of {column}", widget=UnfoldAdminTextInputWidget(attrs=hints)
            )
            self.fields[f"type_{number}"] = forms.ChoiceField(
                required=False, label=f"Type of {column}",
                widget=UnfoldAdminSelectWidget(attrs={"aria-label": f"Type of {column}"}),
                choices=[("", "as it is"), *((one, one) for one in values.TYPES)],
            )  # fmt: skip

    def settings(self) -> Iterator[BoundField]:
        """Give the fields that concern all rows."""
        return (self[name] for name in self.fields if not name.startswith(("field_", "type_")))

    def pairs(self) -> Iterator[tuple[str, BoundField, BoundField]]:
        """Give each column with its two fields."""
        return ((name, self[f"field_{n}"], self[f"type_{n}"]) for n, name in enumerate(self.columns))

    def mapping(self) -> Mapping:
        """Return what was filled in; for a valid form."""
        given = self.cleaned_data
        if given.get("whole"):
            return Mapping(encoding=given["encoding"])
        constants = {name: given[name] for name in ("type", "event") if given[name]}
        return Mapping(
            columns=self._by_column("field"), types=self._by_column("type"), constants=constants,
            only_mapped=given["only_mapped"], time_zone=given["time_zone"], time_format=given["time_format"],
            encoding=given["encoding"], delimiter=given.get("delimiter", ""),
        )  # fmt: skip

    def _by_column(self, kind: str) -> dict[str, str]:
        named = ((name, self.cleaned_data[f"{kind}_{number}"].strip()) for number, name in enumerate(self.columns))
        return {name: value for name, value in named if value}


def initial(mapping: Mapping, columns: tuple[str, ...]) -> dict[str, Any]:
    """Return what a form says of a mapping."""
    found: dict[str, Any] = {
        "whole": mapping.whole, "type": mapping.constants.get("type", ""), "event": mapping.constants.get("event", ""),
        "time_zone": mapping.time_zone, "time_format": mapping.time_format, "delimiter": mapping.delimiter,
        "encoding": mapping.encoding, "only_mapped": mapping.only_mapped,
    }  # fmt: skip
    fields = guess(columns, mapping) | mapping.columns
    for number, column in enumerate(columns):
        found[f"field_{number}"] = fields.get(column, "")
        found[f"type_{number}"] = mapping.types.get(column, "")
    return found


def keys_of(stream: BinaryIO, layout: Layout) -> tuple[str, ...]:
    """Return the columns of a CSV file, of an NDJSON file the keys of its first objects."""
    if layout.file_format == "csv":
        return layout.columns
    found: dict[str, None] = {}
    for record in itertools.islice(records(stream, layout), LOOKED_AT):
        try:
            found |= dict.fromkeys(msgspec.json.decode(record.raw, type=dict[str, msgspec.Raw]))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return tuple(found)[:MOST_KEYS]
