"""Celery beat's schedule, in the style of the other pages."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django_celery_beat import admin as beat
from django_celery_beat import models
from unfold.admin import ModelAdmin, TabularInline
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from cdp.admin.base import Audited

for model in (
    models.ClockedSchedule,
    models.CrontabSchedule,
    models.IntervalSchedule,
    models.PeriodicTask,
    models.SolarSchedule,
):
    admin.site.unregister(model)


class TaskSelect(UnfoldAdminSelectWidget, beat.TaskSelectWidget):
    """A choice of the known tasks."""


class PeriodicTaskForm(beat.PeriodicTaskForm):
    """The form of a periodic task."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["task"].widget = UnfoldAdminTextInputWidget()
        self.fields["regtask"].widget = TaskSelect()


@admin.register(models.PeriodicTask)
class PeriodicTaskAdmin(Audited, beat.PeriodicTaskAdmin, ModelAdmin):
    """What runs when."""

    form = PeriodicTaskForm
    list_display = ["name", "task", "enabled", "scheduler", "last_run_at"]
    list_filter = ["enabled"]
    date_hierarchy = None


class TasksInline(beat.PeriodicTaskInline, TabularInline):
    """The tasks of a schedule."""


@admin.register(models.IntervalSchedule)
class IntervalScheduleAdmin(Audited, beat.IntervalScheduleAdmin, ModelAdmin):
    """Every so often."""

    inlines = [TasksInline]


@admin.register(models.CrontabSchedule)
class CrontabScheduleAdmin(Audited, beat.CrontabScheduleAdmin, ModelAdmin):
    """At times of the day, week and year."""

    inlines = [TasksInline]


@admin.register(models.ClockedSchedule)
class ClockedScheduleAdmin(Audited, beat.ClockedScheduleAdmin, ModelAdmin):
    """Once, at a time."""

    inlines = [TasksInline]


@admin.register(models.SolarSchedule)
class SolarScheduleAdmin(Audited, beat.SolarScheduleAdmin, ModelAdmin):
    """By the sun."""

    inlines = [TasksInline]
